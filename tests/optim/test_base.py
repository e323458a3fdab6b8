"""`OptimizerAlgorithm` over a tiny model, and `BaseOptimizer` alone."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from algoperf_torch import BaseOptimizer, Hyperparameters, OptimizerAlgorithm
from algoperf_torch.errors import AlgoPerfError, HyperparameterError, SubmissionError, SubmissionLoadError
from algoperf_torch.optim.base import require_fraction, require_non_negative, require_positive


class SignDescent(BaseOptimizer):
    """Small and stateful enough to test the base class with."""

    def __init__(self, params, lr=0.01, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    def check_options(self, group):
        super().check_options(group)
        require_fraction(beta=group["beta"])

    def init_state(self, param):
        return {"momentum": torch.zeros_like(param, dtype=torch.float32)}

    def update_(self, param, grad, state, group):
        state["momentum"].lerp_(grad.float(), 1 - group["beta"])
        param.sub_(state["momentum"].sign() * group["lr"])


def build(tiny, optimizer_class=SignDescent, hyperparameters=None, *, attributes=None, **options):
    torch.manual_seed(0)
    context = tiny.build_context(**options)
    algorithm_class = OptimizerAlgorithm.over(optimizer_class, **(attributes or {}))
    algorithm = algorithm_class.from_context(context.model, Hyperparameters(hyperparameters or {}), context)
    return algorithm, context, tiny.build_stream(context)


# ---------------------------------------------------------------- every optimizer of torch

TORCH_OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
)
CANNOT_WORK = {"Muon": SubmissionLoadError, "SparseAdam": SubmissionError}  # matrices only, sparse only
LEARNING_RATES = {"Adadelta": 1.0, "LBFGS": 0.5, "SGD": 0.3, "ASGD": 0.3, "Rprop": 0.01}


@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_every_torch_optimizer_trains_or_gets_our_error(tiny, name):
    def run():
        given = {"lr": LEARNING_RATES.get(name, 0.02)}
        algorithm, context, stream = build(tiny, getattr(torch.optim, name), given)
        tiny.train(algorithm, context, stream, 25 if name == "LBFGS" else 100)
        return tiny.accuracy(context.model)

    if name in CANNOT_WORK:
        with pytest.raises(CANNOT_WORK[name], match=name):
            run()
    else:
        assert run() > 0.7


def test_the_walk_finds_the_optimizers():
    assert len(TORCH_OPTIMIZERS) >= 14
    assert {"AdamW", "LBFGS", "SparseAdam", "Muon", *CANNOT_WORK} <= set(TORCH_OPTIMIZERS)


# ---------------------------------------------------------------- the step


def test_equals_a_plain_loop(tiny):
    algorithm, context, stream = build(tiny, torch.optim.AdamW, {"learning_rate": 0.01, "one_minus_beta1": 0.2})
    tiny.train(algorithm, context, stream, 10)
    plain = tiny.build_context().model
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.8, 0.999))
    for draw in range(10):
        batch = tiny.make_batch(draw)
        optimizer.zero_grad()
        output = tiny.loss(plain(batch["inputs"]), batch)
        (output.summed / output.n_valid).backward()
        optimizer.step()
    torch.testing.assert_close(tiny.flat(context.model), tiny.flat(plain), rtol=0, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_give_the_same_gradient(tiny, parts):
    """Parts have unequal numbers of valid examples; batch-norm groups lie within them."""
    whole, context, stream = build(tiny)
    loss = whole.backward(next(stream))
    cut, other, stream = build(tiny, num_microbatches=parts)
    batch = next(stream)
    counts = {float(part["weights"].sum()) for part in other.microbatches(batch, parts)}
    assert len(counts) > 1
    torch.testing.assert_close(cut.backward(batch), loss)
    for expected, actual in zip(context.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-5, atol=1e-7)
    assert other.passes.backward == parts


def test_gradient_is_clipped(tiny):
    algorithm, context, stream = build(tiny, torch.optim.SGD, {"lr": 1.0, "grad_clip": 1e-3})
    before = tiny.flat(context.model)
    tiny.train(algorithm, context, stream, 1)
    torch.testing.assert_close((tiny.flat(context.model) - before).norm(), torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_label_smoothing_reaches_the_loss(tiny):
    seen = []

    def loss(outputs, batch, label_smoothing=0.0):
        seen.append(label_smoothing)
        return tiny.loss(outputs, batch, label_smoothing)

    algorithm, context, stream = build(tiny, SignDescent, {"label_smoothing": 0.2}, loss=loss)
    tiny.train(algorithm, context, stream, 1)
    assert seen == [0.2]
    assert algorithm.label_smoothing == 0.2  # what the harness compiles its loss for


@pytest.mark.parametrize(
    ("given", "expected"), [({"dropout_rate": 0.25}, 0.25), ({"dropout_rate": None}, 0.0), ({}, 0.0)]
)
def test_dropout_rate_reaches_the_model(tiny, given, expected):
    _, context, _ = build(tiny, SignDescent, given)
    assert float(context.model[3].rate) == expected


def test_schedule_sets_a_tensor_for_ours_and_a_number_for_others(tiny):
    ours, context, stream = build(tiny, attributes={"schedule": "cosine"})
    tensor = ours.optimizer.param_groups[0]["lr"]
    theirs, other, other_stream = build(tiny, torch.optim.SGD, {"lr": 0.01}, attributes={"schedule": "cosine"})
    for _ in range(3):
        tiny.train(ours, context, stream, 1)
        tiny.train(theirs, other, other_stream, 1)
        assert ours.optimizer.param_groups[0]["lr"] is tensor
        assert isinstance(theirs.optimizer.param_groups[0]["lr"], float)
        assert float(tensor) == pytest.approx(theirs.optimizer.param_groups[0]["lr"], rel=1e-6)


def test_loss_and_learning_rate_are_logged(tiny):
    algorithm, context, stream = build(tiny, attributes={"schedule": "linear"})
    tiny.train(algorithm, context, stream, 101)
    logged = {(step, name): float(value) for step, name, value in context.scalars}
    assert set(logged) == {(0, "loss"), (0, "lr"), (100, "loss"), (100, "lr")}
    assert logged[100, "loss"] < logged[0, "loss"]
    assert (logged[0, "lr"], logged[100, "lr"]) == (0.0, 0.0)  # before the warm-up, and at the end


def test_closure_sees_the_same_dropout_and_moves_statistics_once(tiny):
    losses = []

    class Repeats(torch.optim.SGD):
        def step(self, closure):
            losses.extend(float(closure()) for _ in range(3))
            return super().step()

    algorithm, context, stream = build(tiny, Repeats, {"lr": 0.1, "dropout_rate": 0.5})
    batch = next(stream)
    once = copy.deepcopy(context.model)
    once(batch["inputs"])
    algorithm.training_step(batch)
    assert losses[0] == losses[1] == losses[2]
    torch.testing.assert_close(context.model[1].running_mean, once[1].running_mean)


def test_closure_that_is_never_called_is_an_error(tiny):
    class Lazy(torch.optim.SGD):
        def step(self, closure):
            return None

    algorithm, _, stream = build(tiny, Lazy)
    with pytest.raises(SubmissionError, match="never evaluated its closure"):
        algorithm.training_step(next(stream))


def test_later_errors_of_a_foreign_optimizer_are_its_own(tiny):
    class Fails(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            self.count += 1
            if self.count == 2:
                raise ZeroDivisionError("late")

    algorithm, context, stream = build(tiny, Fails)
    with pytest.raises(ZeroDivisionError, match="late"):
        tiny.train(algorithm, context, stream, 2)


def test_out_of_memory_keeps_its_type(tiny):
    class Hungry(torch.optim.SGD):
        def step(self, closure=None):
            raise torch.OutOfMemoryError("no more")

    algorithm, _, stream = build(tiny, Hungry)
    with pytest.raises(torch.OutOfMemoryError):
        algorithm.training_step(next(stream))


def test_parameter_groups_by_role(tiny):
    class NoDecayOnVectors(OptimizerAlgorithm):
        optimizer_class = torch.optim.SGD

        def param_groups(self):
            matrices = [p for p in self.model.parameters() if p.dim() >= 2]
            output = [p for p in self.model.parameters() if self.context.role(p).is_output]
            assert output
            return [{"params": matrices}, {"params": [p for p in self.model.parameters() if p.dim() < 2], "lr": 0.5}]

    context = tiny.build_context()
    algorithm = NoDecayOnVectors.from_context(context.model, Hyperparameters(lr=0.1), context)
    assert [group["lr"] for group in algorithm.optimizer.param_groups] == [0.1, 0.5]
    assert [group["initial_lr"] for group in algorithm.optimizer.param_groups] == [0.1, 0.5]


@pytest.mark.parametrize(
    "optimizer_class", [SignDescent, torch.optim.AdamW, torch.optim.LBFGS], ids=lambda c: c.__name__
)
def test_resumed_equals_uninterrupted(tiny, optimizer_class):
    attributes = {"schedule": "cosine"}
    algorithm, context, stream = build(tiny, optimizer_class, {"lr": 0.05}, attributes=attributes)
    tiny.train(algorithm, context, stream, 7)
    model, state = copy.deepcopy(context.model.state_dict()), copy.deepcopy(algorithm.state_dict())
    tiny.train(algorithm, context, stream, 7)
    resumed, fresh, _ = build(tiny, optimizer_class, {"lr": 0.05}, attributes=attributes)
    fresh.model.load_state_dict(model)
    resumed.load_state_dict(state)
    tiny.train(resumed, fresh, tiny.build_stream(fresh, 7), 7)
    torch.testing.assert_close(tiny.flat(fresh.model), tiny.flat(context.model), rtol=0, atol=0)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("optimizer_class", "given", "message"),
    [
        (SignDescent, {"lr": -1.0}, "Invalid lr=-1.0: must be >= 0."),
        (SignDescent, {"beta": 1.0}, r"Invalid beta=1.0: must be in \[0, 1\)."),
        (SignDescent, {"momentum": 0.9}, "has no hyperparameter 'momentum'. Accepted: lr, beta, label_smoothing"),
        (SignDescent, {"lr": "fast"}, r"'lr' is 'fast' \(str\). Write a number."),
        (SignDescent, {"lr": True}, "Write a number."),
        (SignDescent, {"lr": float("nan")}, "Write a finite number."),
        (SignDescent, {"lr": 0.1, "learning_rate": 0.1}, "'lr' and 'learning_rate' both set 'lr'"),
        (SignDescent, {"grad_clip": 0}, "Invalid grad_clip=0: must be > 0."),
        (SignDescent, {"label_smoothing": 1.0}, r"Invalid label_smoothing=1.0: must be in \[0, 1\)."),
        (SignDescent, {"dropout_rate": -0.1}, "Invalid dropout_rate=-0.1"),
        (torch.optim.AdamW, {"betas": [0.9]}, "Write a list of 2 values."),
        (torch.optim.AdamW, {"beta1": 0.9, "betas": [0.9, 0.99]}, "both set 'betas'"),
        (torch.optim.AdamW, {"betas": [0.9, 1.5]}, "cannot be built with"),
        (torch.optim.SGD, {"nesterov": 1}, "Write true or false."),
        (torch.optim.SGD, {"nesterov": True}, "Nesterov momentum requires a momentum"),
    ],
)
def test_hyperparameters_are_refused_in_one_line(optimizer_class, given, message):
    algorithm = OptimizerAlgorithm.over(optimizer_class, label="mine")
    with pytest.raises(HyperparameterError, match=message) as caught:
        algorithm.check_hyperparameters(Hyperparameters(given))
    assert "\n" not in str(caught.value)


def test_required_hyperparameters_are_named():
    class Needs(torch.optim.SGD):
        def __init__(self, params, lr, power):
            super().__init__(params, lr=lr)

    algorithm = OptimizerAlgorithm.over(Needs, label="needs")
    with pytest.raises(HyperparameterError, match="needs needs a value for power"):
        algorithm.check_hyperparameters(Hyperparameters(lr=0.1))
    algorithm.check_hyperparameters(Hyperparameters(lr=0.1, power=2))


def test_an_algorithm_without_hyperparameters_takes_none():
    algorithm = OptimizerAlgorithm.over(torch.optim.SGD, accepts=frozenset())
    algorithm.check_hyperparameters(Hyperparameters())
    with pytest.raises(HyperparameterError, match=r"SGD has no hyperparameter 'lr'\. Accepted: none"):
        algorithm.check_hyperparameters(Hyperparameters(lr=0.1))


# ---------------------------------------------------------------- BaseOptimizer


def test_option_messages():
    with pytest.raises(ValueError, match=r"^Invalid lr=-1.0: must be >= 0.$"):
        SignDescent([torch.zeros(1)], lr=-1.0)
    with pytest.raises(ValueError, match=r"^Invalid lr=nan: must be >= 0.$"):
        require_non_negative(lr=float("nan"))
    with pytest.raises(ValueError, match=r"^Invalid betas\[1\]=1.0: must be in \[0, 1\).$"):
        require_fraction(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match=r"^Invalid k=0: must be > 0.$"):
        require_positive(k=0)
    with pytest.raises(TypeError, match=r"^Invalid lr='x': must be a number.$"):
        require_non_negative(lr="x")
    require_non_negative(lr=torch.tensor(0.1))


def test_options_of_every_group_are_checked():
    good = {"params": [torch.zeros(1)]}
    with pytest.raises(ValueError, match="Invalid lr=-2"):
        SignDescent([good, {"params": [torch.zeros(1)], "lr": -2.0}])
    optimizer = SignDescent([good])
    with pytest.raises(ValueError, match="Invalid beta=7"):
        optimizer.add_param_group({"params": [torch.zeros(1)], "beta": 7})


def test_missing_gradients_are_skipped_and_steps_counted_per_parameter():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = SignDescent([first, second])
    first.grad = torch.ones(3)
    optimizer.step()
    second.grad = torch.ones(2)
    optimizer.step()
    assert (float(optimizer.state[first]["step"]), float(optimizer.state[second]["step"])) == (2, 1)
    torch.testing.assert_close(second.detach(), torch.full((2,), 0.99))


def test_sparse_gradients_are_a_clear_error():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SignDescent(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"SignDescent does not support sparse gradients \(parameter of shape \(5, 2\)\)"
    ):
        optimizer.step()


def test_complex_parameters_are_a_clear_error():
    with pytest.raises(ValueError, match="does not support complex parameters"):
        SignDescent([torch.zeros(1, dtype=torch.complex64)])


def test_closure_is_evaluated_with_gradients():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SignDescent([parameter])

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 2.0
    assert float(optimizer.step(closure).detach()) < 2.0


def test_without_mathematics_there_is_an_error():
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    with pytest.raises(NotImplementedError, match="must define `update_`"):
        BaseOptimizer([parameter], {"lr": 0.1}).step()


def test_state_keeps_its_dtype_and_the_learning_rate_its_identity():
    def build():
        parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        parameter.grad = torch.full((3,), 0.3, dtype=torch.bfloat16)
        return parameter, SignDescent([parameter], lr=torch.tensor(0.25))

    parameter, optimizer = build()
    optimizer.step()
    other, loaded = build()
    rate = loaded.param_groups[0]["lr"]
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = torch.tensor(0.125)
    loaded.load_state_dict(state)
    assert loaded.param_groups[0]["lr"] is rate
    assert float(rate) == 0.125
    momentum = loaded.state[other]["momentum"]
    assert momentum.dtype is torch.float32
    torch.testing.assert_close(momentum, optimizer.state[parameter]["momentum"], rtol=0, atol=0)
    loaded.step()
    assert float(optimizer.state[parameter]["step"]) == 1  # the saved state was copied, not shared


def test_errors_of_ours_are_not_wrapped():
    class Refuses(torch.optim.SGD):
        def __init__(self, params, lr=0.1):
            raise SubmissionLoadError("as it says")

    with pytest.raises(AlgoPerfError, match=r"^as it says$"):
        OptimizerAlgorithm.over(Refuses).check_hyperparameters(Hyperparameters())
