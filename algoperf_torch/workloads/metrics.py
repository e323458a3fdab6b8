"""Metrics as sums: every evaluation chunk gives one row of sums, and the rows of all ranks add up to the metrics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.errors import DataError
from algoperf_torch.spec import LossOutput


def sum_row(*values: Tensor) -> Tensor:
    """float64 [k]: each tensor summed in double precision, in the order given."""
    return torch.stack([value.sum(dtype=torch.float64) for value in values])


def accuracy_row(logits: Tensor, targets: Tensor, weights: Tensor, loss: LossOutput) -> Tensor:
    """float64 [3]: weighted number of correct predictions, summed loss, sum of the weights.

    `logits` [..., classes] against class indices `targets` [...]; `weights` [...] are 0 for padding.
    """
    return sum_row((logits.argmax(dim=-1) == targets) * weights, loss.per_example, weights)


def mean_metrics(sums: Tensor, names: Sequence[str], num_examples: int | None = None) -> dict[str, float]:
    """The first columns of `sums` [num_chunks, len(names) + 1] over the last column, which counts what they add up.

    Raises `DataError` where the count is zero, or is not `num_examples`: the metric would be biased silently.
    """
    *totals, count = sums.sum(dim=0).tolist()
    if count <= 0 or (num_examples is not None and count != num_examples):
        wanted = "at least one" if num_examples is None else str(num_examples)
        raise DataError(f"An evaluation went over {count:g} examples, expected {wanted}. Check the data of this split.")
    return {name: total / count for name, total in zip(names, totals, strict=True)}
