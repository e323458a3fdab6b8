"""Sums of the rows of each segment, in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor


def segment_sum(values: Tensor, segments: Tensor, num_segments: int, order: Tensor | None = None) -> Tensor:
    """[num_segments, width]: row s is the sum of the rows of `values` [rows, width] whose entry in `segments` is s.

    `order` lists the rows by segment (a stable `argsort` of `segments`); without it `segments` must be sorted. Rows whose
    segment lies outside [0, num_segments) are left out.
    """
    del order
    inside = (segments >= 0) & (segments < num_segments)
    rows = values.masked_fill(~inside[:, None], 0.0)
    return values.new_zeros(num_segments, values.shape[1]).index_add(0, segments.where(inside, 0), rows)
