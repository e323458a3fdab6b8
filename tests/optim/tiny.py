"""A tiny trial in one file: model, batches, context. Used by the fixtures and by the two-rank script."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from algoperf_torch.data.stream import TrainStream
from algoperf_torch.optim.context import Engine, TrainingContext
from algoperf_torch.spec import LossKind, LossOutput, Target
from algoperf_torch.workloads.layers import (
    BatchNorm,
    Dropout,
    set_batch_norm_group_size,
    set_batch_norm_update,
    set_dropout,
)
from algoperf_torch.workloads.roles import mark_output, parameter_roles

FEATURES, CLASSES, BATCH = 8, 4, 128


def build_model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(
                FEATURES, 16, bias=False
            ),  # a bias before batch norm has no gradient but rounding, which Adam scales up
            BatchNorm(16),
            nn.Tanh(),
            Dropout(0.0),
            mark_output(nn.Linear(16, CLASSES)),
        )


def make_batch(draw: int, *, rank: int = 0, world_size: int = 1) -> dict:
    """This rank's share of global batch number `draw`: labels by a fixed linear teacher, every seventh masked."""
    generator = torch.Generator().manual_seed(1000 + draw)
    inputs = torch.randn(BATCH, FEATURES, generator=generator)
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(7))
    weights = torch.ones(BATCH)
    weights[draw % 7 :: 7] = 0.0
    batch = {"inputs": inputs, "targets": (inputs @ teacher).argmax(1), "weights": weights}
    share = BATCH // world_size
    return {key: value[rank * share : (rank + 1) * share] for key, value in batch.items()}


def loss(outputs: torch.Tensor, batch: dict, label_smoothing: float = 0.0) -> LossOutput:
    per_example = functional.cross_entropy(outputs, batch["targets"], reduction="none", label_smoothing=label_smoothing)
    per_example = per_example * batch["weights"]
    return LossOutput(per_example.sum(), batch["weights"].sum(), per_example)


def build_context(
    model: nn.Module | None = None, *, step_hint: int = 100, num_microbatches: int = 1, loss=loss
) -> TrainingContext:
    """A context over the tiny model, data-parallel where a process group exists."""
    model = build_model() if model is None else model
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    set_batch_norm_group_size(model, BATCH // 4)
    model.train()
    training: nn.Module = model
    if world_size > 1:
        training = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    engine = Engine(
        forward_compiled=lambda batch: training(batch["inputs"]),
        forward_eager=lambda batch: model(batch["inputs"]),
        loss=loss,
        elapsed=lambda: 0.0,
        build_model=build_model,
        set_batch_norm_update=lambda update: set_batch_norm_update(model, update),
        set_dropout=lambda rate: set_dropout(model, rate),
        no_sync=training.no_sync if world_size > 1 else nullcontext,
        process_group=dist.group.WORLD if world_size > 1 else None,
    )
    return TrainingContext(
        step_hint=step_hint,
        budget_seconds=60.0,
        loss_kind=LossKind.SOFTMAX_CROSS_ENTROPY,
        target=Target("accuracy", 0.9),
        model=model,
        parameters=parameter_roles(model),
        rank=rank,
        world_size=world_size,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(1),
        data_generator=torch.Generator().manual_seed(2),
        engine=engine,
        num_microbatches=num_microbatches,
    )


def build_stream(context: TrainingContext, position: int = 0) -> TrainStream:
    def share(draw: int) -> dict:
        return make_batch(draw, rank=context.rank, world_size=context.world_size)

    return TrainStream(share, device=context.device, position=position)


def train(algorithm, context: TrainingContext, stream: TrainStream, steps: int, *, evaluate_every: int = 0) -> None:
    """The runner's loop without clock, records and evaluation; the hooks are called around where one would be."""
    for _ in range(steps):
        algorithm.training_step(algorithm.select_batch(stream))
        context.step += 1
        if evaluate_every and context.step % evaluate_every == 0:
            algorithm.prepare_for_eval()
            context.eval_results.append((context.step, {"validation/accuracy": accuracy(context.model)}))
            algorithm.resume_training()
        if context.finished:
            return


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of right answers on fresh batches, in evaluation mode."""
    model.eval()
    batches = [make_batch(100_000 + draw) for draw in range(8)]
    right = torch.cat([model(batch["inputs"]).argmax(1) == batch["targets"] for batch in batches])
    model.train()
    return float(right.float().mean())


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
