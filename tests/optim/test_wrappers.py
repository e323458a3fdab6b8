"""Weight averaging, SAM, and the statistics that averaged weights need."""

from __future__ import annotations

import copy

import pytest
import torch

from algoperf_torch import Hyperparameters
from algoperf_torch.errors import HyperparameterError, SubmissionError
from algoperf_torch.optim.batch_norm import BatchNormRecomputation
from algoperf_torch.runner.submissions import load_submission


def build(tiny, reference, hyperparameters=None, **options):
    torch.manual_seed(0)
    context = tiny.build_context(**options)
    algorithm_class = load_submission(reference).algorithm
    point = Hyperparameters(hyperparameters or {})
    algorithm_class.check_hyperparameters(point)
    return algorithm_class.from_context(context.model, point, context), context, tiny.build_stream(context)


def history(tiny, reference, hyperparameters, steps):
    """The weights after each step of the algorithm without its wrapper."""
    algorithm, context, stream = build(tiny, reference, hyperparameters)
    weights = [tiny.flat(context.model)]
    for _ in range(steps):
        tiny.train(algorithm, context, stream, 1)
        weights.append(tiny.flat(context.model))
    return weights


def test_ema_is_the_exponential_average(tiny):
    weights = history(tiny, "adamw", {"lr": 0.01}, 40)
    algorithm, context, stream = build(tiny, "ema:adamw", {"lr": 0.01, "ema_decay": 0.5})
    tiny.train(algorithm, context, stream, 40)
    torch.testing.assert_close(tiny.flat(context.model), weights[-1], rtol=0, atol=0)
    average = weights[0]
    for step, point in enumerate(weights[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * point
    algorithm.prepare_for_eval()
    torch.testing.assert_close(tiny.flat(context.model), average, rtol=1e-5, atol=1e-6)
    algorithm.resume_training()
    torch.testing.assert_close(tiny.flat(context.model), weights[-1], rtol=0, atol=0)


def test_lawa_is_the_mean_of_the_latest_snapshots(tiny):
    weights = history(tiny, "momentum", {"lr": 0.1}, 25)
    given = {"lr": 0.1, "lawa_k": 3, "lawa_period": 0.04}
    algorithm, context, stream = build(tiny, "lawa:momentum", given, step_hint=100)
    tiny.train(algorithm, context, stream, 3)
    algorithm.prepare_for_eval()  # no snapshot yet
    torch.testing.assert_close(tiny.flat(context.model), weights[3], rtol=0, atol=0)
    algorithm.resume_training()
    tiny.train(algorithm, context, stream, 22)
    algorithm.prepare_for_eval()
    mean = (weights[16] + weights[20] + weights[24]) / 3
    torch.testing.assert_close(tiny.flat(context.model), mean, rtol=1e-5, atol=1e-6)
    algorithm.resume_training()
    torch.testing.assert_close(tiny.flat(context.model), weights[25], rtol=0, atol=0)


@pytest.mark.parametrize(
    "reference", ["ema:nadamw", "lawa:momentum", "sam:adamw", "ema:schedule_free_sgd", "ema:sam:lion"]
)
def test_resumed_equals_uninterrupted(tiny, reference):
    algorithm, context, stream = build(tiny, reference)
    tiny.train(algorithm, context, stream, 12, evaluate_every=6)
    model, state = copy.deepcopy(context.model.state_dict()), copy.deepcopy(algorithm.state_dict())
    tiny.train(algorithm, context, stream, 12, evaluate_every=6)
    resumed, fresh, _ = build(tiny, reference)
    fresh.model.load_state_dict(model)
    resumed.load_state_dict(state)
    fresh.step = 12
    tiny.train(resumed, fresh, tiny.build_stream(fresh, 12), 12, evaluate_every=6)
    torch.testing.assert_close(tiny.flat(fresh.model), tiny.flat(context.model), rtol=0, atol=0)
    for trial in ((algorithm, context), (resumed, fresh)):
        trial[0].prepare_for_eval()
    for a, b in zip(context.model.state_dict().values(), fresh.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_average_of_half_precision_weights_is_kept_in_float32(tiny):
    algorithm, context, _ = build(tiny, "ema:momentum", {"ema_decay": 0.999})
    context.model.bfloat16()
    algorithm = type(algorithm).from_context(context.model, Hyperparameters(), context)
    algorithm.steps = 10**6
    with torch.no_grad():
        for parameter in context.model.parameters():
            parameter.fill_(1.0)
        for average in algorithm.average():
            average.zero_()
    for _ in range(100):
        algorithm.accumulate()
    for average in algorithm.average():  # in bfloat16 it would have stopped on the way
        torch.testing.assert_close(average, torch.full_like(average, 1 - 0.999**100), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("reference", "given", "message"),
    [
        ("ema:adamw", {"ema_decay": 1.0}, r"Invalid ema_decay=1.0: must be in \[0, 1\)"),
        ("ema:adamw", {"ema_decay": "slow"}, "'ema_decay' is 'slow'. Write a number"),
        ("lawa:adamw", {"lawa_k": 0}, "Invalid lawa_k=0: must be a whole number >= 1"),
        ("lawa:adamw", {"lawa_k": 2.5}, "Invalid lawa_k=2.5"),
        ("lawa:adamw", {"lawa_period": 0.0}, r"Invalid lawa_period=0.0: must be in \(0, 1\]"),
        ("sam:adamw", {"rho": -0.1}, "Invalid rho=-0.1: must be >= 0"),
        ("ema:adamw", {"rho": 0.1}, "adamw has no hyperparameter 'rho'"),
        ("ema:adamw", {"lr": -1.0}, "Invalid lr=-1.0"),
    ],
)
def test_wrong_hyperparameters_are_refused(tiny, reference, given, message):
    with pytest.raises(HyperparameterError, match=message):
        build(tiny, reference, given)


def test_sam_takes_the_gradient_at_the_worst_point_nearby(tiny):
    algorithm, context, stream = build(
        tiny, "sam:momentum", {"lr": 0.1, "momentum": 0.0, "rho": 0.5, "warmup_steps": 0}
    )
    batch = next(stream)
    plain = tiny.build_context()
    before = tiny.flat(plain.model)

    def gradient():
        plain.model.zero_grad()
        plain.mean_loss(plain.forward(batch), batch).backward()
        return torch.cat([parameter.grad.flatten() for parameter in plain.model.parameters()])

    g = gradient()
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(before + 0.5 * g / g.norm(), plain.model.parameters())
    expected = before - 0.1 * gradient()
    algorithm.training_step(batch)
    torch.testing.assert_close(tiny.flat(context.model), expected, rtol=1e-5, atol=1e-6)


def test_wrappers_tell_the_label_smoothing_of_what_they_wrap(tiny):
    assert build(tiny, "ema:sam:adamw", {"label_smoothing": 0.1})[0].label_smoothing == 0.1


def test_sam_with_no_radius_is_the_base_optimizer(tiny):
    weights = history(tiny, "nadamw", {"lr": 0.01}, 10)
    algorithm, context, stream = build(tiny, "sam:nadamw", {"lr": 0.01, "rho": 0.0})
    tiny.train(algorithm, context, stream, 10)
    torch.testing.assert_close(tiny.flat(context.model), weights[-1])


# ---------------------------------------------------------------- batch-norm statistics


def test_statistics_are_those_of_the_kept_batches(tiny):
    """At the present weights, the latest batch weighing most, as in the layers' own running average."""
    context = tiny.build_context()
    recomputation = BatchNormRecomputation(context.model, num_batches=3)
    layer = context.model[1]
    layer.running_mean.fill_(100.0)
    layer.running_var.fill_(1000.0)
    batches = [tiny.make_batch(draw) for draw in range(5)]
    recomputation.keep(batches[:2])
    for batch in batches[2:]:
        recomputation.keep(batch)
    recomputation.recompute(context)
    weights = torch.tensor([0.81, 0.9, 1.0])
    weights = weights / weights.sum()
    hidden = [context.model[0](batch["inputs"]).detach() for batch in batches[2:]]
    mean = sum(w * h.mean(0) for w, h in zip(weights, hidden, strict=True))
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
    groups = [h.reshape(-1, layer.group_size, 16) for h in hidden]
    size = layer.group_size
    variance = sum(w * g.var(1, correction=0).mean(0) * size / (size - 1) for w, g in zip(weights, groups, strict=True))
    torch.testing.assert_close(layer.running_var, variance, rtol=1e-4, atol=1e-5)


def test_without_batches_statistics_stay(tiny):
    context = tiny.build_context()
    recomputation = BatchNormRecomputation(context.model)
    before = context.model[1].running_mean.clone()
    recomputation.recompute(context)
    torch.testing.assert_close(context.model[1].running_mean, before, rtol=0, atol=0)


def test_statistics_of_the_training_weights_would_be_wrong(tiny, monkeypatch):
    """The trap that the recomputation is there for."""

    def error():
        algorithm, context, stream = build(tiny, "ema:lion", {"lr": 0.1, "ema_decay": 0.95}, step_hint=40)
        tiny.train(algorithm, context, stream, 40)
        algorithm.prepare_for_eval()
        with torch.no_grad():
            hidden = torch.cat([context.model[0](tiny.make_batch(1000 + draw)["inputs"]) for draw in range(20)])
        return float((context.model[1].running_var / hidden.var(0) - 1).abs().mean())

    recomputed = error()
    monkeypatch.setattr(BatchNormRecomputation, "recompute", lambda self, context: None)
    assert recomputed < 0.05
    assert error() > 2 * recomputed


def test_a_model_without_batch_norm_keeps_nothing(tiny):
    recomputation = BatchNormRecomputation(torch.nn.Linear(2, 2))
    recomputation.keep(object())
    recomputation.recompute(tiny.build_context())


def test_batches_that_cannot_be_kept_are_told(tiny):
    recomputation = BatchNormRecomputation(tiny.build_model())
    with pytest.raises(SubmissionError, match=r"`select_batch` returned a str\. Return a batch or a list of batches"):
        recomputation.keep("everything")
