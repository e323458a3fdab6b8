"""Evaluation of one split: the same numbers whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from algoperf_torch.data.stream import to_device
from algoperf_torch.errors import DataError
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.spec import EVALUATION_SPLITS, Batch, Split
from algoperf_torch.workloads.base import Workload


def evaluated_splits(workload: Workload) -> list[Split]:
    """The splits that an evaluation runs over: those that are not empty. Validation never is."""
    splits = [split for split in EVALUATION_SPLITS if workload.spec.num_examples(split) > 0]
    if Split.VALIDATION not in splits:
        raise DataError(f"Workload {workload.spec.name}: the validation split is empty.")
    return splits


@torch.no_grad()
def evaluate(
    workload: Workload,
    model: nn.Module,
    forward: Callable[[Batch], Any],
    ranks: Ranks,
    *,
    seed: int,
    eval_batch_size: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """All metrics of all splits, keyed by prefixed name, plus the numbers of examples.

    `progress` is called after every chunk, so that somebody who watches a long evaluation knows that it goes on.
    Every chunk of examples has one fixed shape, belongs to one rank, and fills its own row of sums; the rows are added up
    in chunk order on every rank. So N ranks get exactly what one rank gets. The model is left in training mode, the
    random state as it was.
    """
    results: dict[str, float] = {}
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            for split in evaluated_splits(workload):
                rows = _chunk_sums(workload, model, forward, split, ranks, seed, eval_batch_size, progress)
                for name, value in workload.metrics(rows, split).items():
                    results[f"{split.prefix}/{name}"] = value
                if split is not Split.EVAL_TRAIN:
                    results[f"{split.prefix}/num_examples"] = workload.spec.num_examples(split)
        finally:
            model.train()
    return results


def _chunk_sums(
    workload: Workload,
    model: nn.Module,
    forward: Callable[[Batch], Any],
    split: Split,
    ranks: Ranks,
    seed: int,
    eval_batch_size: int | None,
    progress: Callable[[], None],
) -> Tensor:
    """float64 [num_chunks, k] in host memory, complete on every rank."""
    num_chunks = workload.num_chunks(split, eval_batch_size)
    chunks: list[int] = []
    sums: list[Tensor] = []
    batches = workload.eval_batches(
        split, seed=seed, rank=ranks.rank, world_size=ranks.world_size, eval_batch_size=eval_batch_size
    )
    for chunk, batch in batches:
        on_device = workload.finish_batch(to_device(batch, ranks.device))
        chunks.append(chunk)
        sums.append(workload.evaluate_chunk(model, forward, on_device))
        progress()
    (width,) = ranks.maximum(len(sums[0]) if sums else 0)  # a rank without a chunk learns the row's length
    rows = torch.zeros(num_chunks, int(width), dtype=torch.float64)
    if sums:
        rows[torch.tensor(chunks)] = torch.stack(sums).cpu()
    return ranks.sum_rows(rows)


def is_finite(results: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in results.values())
