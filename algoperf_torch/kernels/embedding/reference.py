"""Rows of a table that is held in parts, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gather_rows(ids: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """[*ids.shape, width]: row i of the table that `parts` [rows, width] form one below the other; zeros for ids outside.

    All parts have one shape.
    """
    rows, width = parts[0].shape
    result = torch.zeros(*ids.shape, width, dtype=parts[0].dtype, device=ids.device)
    for number, part in enumerate(parts):
        inside = (ids >= number * rows) & (ids < (number + 1) * rows)
        found = part[(ids - number * rows).where(inside, 0)] if rows else result
        result = torch.where(inside[..., None], found, result)
    return result
