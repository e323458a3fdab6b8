"""The model as the harness runs it: built from a seed, compiled, wrapped for data parallelism, warmed up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from algoperf_torch.data.stream import to_device
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.evaluate import evaluated_splits
from algoperf_torch.spec import Batch, LossOutput
from algoperf_torch.workloads.base import Workload
from algoperf_torch.workloads.layers import running_statistics, set_batch_norm_group_size

LossFunction = Callable[[Any, Batch, float], LossOutput]


@dataclass(frozen=True)
class ModelEngine:
    """One model under several wrappers that share its parameters.

    `training` is data-parallel over the compiled model and `evaluation` the compiled model alone: compiling over the
    data-parallel wrapper would break the graph at every bucket.
    """

    workload: Workload
    model: nn.Module
    training: nn.Module
    evaluation: nn.Module
    loss: LossFunction

    def forward_compiled(self, batch: Batch) -> Any:
        return self.workload.forward(self.training, batch)

    def forward_eager(self, batch: Batch) -> Any:
        return self.workload.forward(self.model, batch)

    def forward_evaluation(self, batch: Batch) -> Any:
        return self.workload.forward(self.evaluation, batch)

    def no_sync(self) -> AbstractContextManager[None]:
        if isinstance(self.training, DistributedDataParallel):
            return self.training.no_sync()
        return nullcontext()


def full_graph(function: Callable[..., Any], device: torch.device) -> Any:
    """The function, or module, compiled to one graph of static shapes.

    On a CPU random numbers come from torch itself: the compiler's own generator makes one at a time there, which costs
    more than it saves (with dropout, a third of a step of the small translation model). And convolutions keep the memory
    layout of their inputs there: in the compiler's own choice, channels last, some of the models would be slower than eager.
    """
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "fallback_random": True,
        "layout_optimization": False,
    }
    return torch.compile(function, fullgraph=True, dynamic=False, options=options if device.type == "cpu" else None)


def seeded_model(workload: Workload, seed: int) -> nn.Module:
    """A freshly initialised model in host memory; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return workload.build_model()


def build_engine(
    workload: Workload, ranks: Ranks, *, seed: int, global_batch_size: int, batch_norm_groups: int, compiled: bool
) -> ModelEngine:
    """Builds the model on the rank's device, equal on all ranks.

    Batch norm is computed over `batch_norm_groups` groups of the global batch where that divides it; a rank must hold
    whole groups, so with more ranks than groups each rank's share is one group.
    """
    model = seeded_model(workload, seed).to(ranks.device)
    group_size = global_batch_size // batch_norm_groups if global_batch_size % batch_norm_groups == 0 else 0
    set_batch_norm_group_size(model, group_size)
    model.train()
    loss: LossFunction = workload.loss
    inner: nn.Module = model
    if compiled:
        inner, loss = (full_graph(part, ranks.device) for part in (model, workload.loss))
    training = inner
    if ranks.world_size > 1:
        training = DistributedDataParallel(
            inner,
            device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    return ModelEngine(workload, model, training, inner, loss)


def warm_up(
    engine: ModelEngine,
    batch: Batch,
    ranks: Ranks,
    *,
    eval_batch_size: int | None,
    first_part: Callable[[Batch], Batch],
    label_smoothing: float = 0.0,
) -> None:
    """Compiles the harness's own graphs before the clock: forward, loss, backward, evaluation.

    `first_part` cuts from a batch what one pass of the trial takes; graphs are compiled for its shape, and the loss for
    this `label_smoothing`. Parameters, running statistics, gradients and random state are left as they were.
    """
    model = engine.model
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    saved: list[Tensor] = [statistic.clone() for statistic in running_statistics(model)]
    with torch.random.fork_rng(devices=devices):
        model.train()
        batch = first_part(engine.workload.finish_batch(to_device(batch, ranks.device)))
        for _ in range(2):  # the second pass runs with the gradient buckets in their final order
            output = engine.loss(engine.forward_compiled(batch), batch, label_smoothing)
            (output.summed / output.n_valid).backward()
        with torch.no_grad():
            model.eval()
            for split in evaluated_splits(engine.workload):
                examples = engine.workload.eval_batches(split, seed=0, eval_batch_size=eval_batch_size)
                chunk = engine.workload.finish_batch(to_device(next(examples)[1], ranks.device))
                engine.workload.metric_sums(engine.forward_evaluation(chunk), chunk)
            model.train()
    with torch.no_grad():
        for statistic, value in zip(running_statistics(model), saved, strict=True):
            statistic.copy_(value)
    model.zero_grad(set_to_none=True)
    ranks.synchronize()
