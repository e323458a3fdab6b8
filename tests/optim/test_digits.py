"""Every registered algorithm classifies real digits with some point of its own search space."""

from __future__ import annotations

import pytest
import torch

from algoperf_torch import Hyperparameters
from algoperf_torch.optim import registry
from algoperf_torch.optim.context import Engine, TrainingContext
from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.spec import LossKind, Split, Target
from algoperf_torch.workloads.layers import set_batch_norm_update, set_dropout
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles

STEPS = 200


def validation_accuracy(reference: str, point: dict) -> float:
    """After a short trial in this process, uncompiled."""
    workload = build_workload("digits", None)
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model().train()
    engine = Engine(
        forward_compiled=lambda batch: workload.forward(model, batch),
        forward_eager=lambda batch: workload.forward(model, batch),
        loss=workload.loss,
        elapsed=lambda: 0.0,
        build_model=lambda seed: workload.build_model(),
        set_batch_norm_update=lambda update: set_batch_norm_update(model, update),
        set_dropout=lambda rate: set_dropout(model, rate),
    )
    context = TrainingContext(
        step_hint=STEPS,
        budget_seconds=60.0,
        loss_kind=LossKind.SOFTMAX_CROSS_ENTROPY,
        target=Target("accuracy", 0.98),
        model=model,
        parameters=parameter_roles(model),
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        generator=torch.Generator(),
        data_generator=torch.Generator(),
        engine=engine,
    )
    algorithm = load_submission(reference).algorithm.from_context(model, Hyperparameters(point), context)
    make_batch = workload.train_batches(seed=1, global_batch_size=workload.spec.batch_size, rank=0, world_size=1)
    stream = iter(make_batch(draw) for draw in range(10**6))
    for _ in range(STEPS):
        algorithm.training_step(algorithm.select_batch(stream))
        context.step += 1
    algorithm.prepare_for_eval()
    model.eval()
    batch = workload.eval_examples(Split.VALIDATION, 0, workload.spec.num_validation, seed=0)
    with torch.no_grad():
        return float((workload.forward(model, batch).argmax(1) == batch["targets"]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*registry.algorithm_names(), "ema:nadamw", "lawa:nadamw", "sam:nesterov"])
def test_learns_the_digits(name):
    points = load_submission(name).search_space or [{}]
    accuracies = []
    for point in points:
        accuracies.append(validation_accuracy(name, point))
        if accuracies[-1] > 0.93:
            return
    pytest.fail(f"validation accuracies {accuracies}")
