"""Deterministic sums of the rows of each segment, with their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.registry import runs_fused
from algoperf_torch.kernels.segment_sum import reference


@torch.library.custom_op("algoperf::segment_sum", mutates_args=())
def segment_sum(values: Tensor, segments: Tensor, num_segments: int, order: Tensor | None = None) -> Tensor:
    """[num_segments, width]: sums of the rows of `values` [rows, width] with each entry of `segments` [rows].

    `order` lists the rows by segment; without it `segments` must be sorted. Differentiable, any number of times.
    """
    if runs_fused("segment_sum", values.device):
        from algoperf_torch.kernels.segment_sum import fused

        return fused.segment_sum(values.contiguous(), segments, num_segments, order)
    return reference.segment_sum(values, segments, num_segments, order)


@segment_sum.register_fake
def _(values: Tensor, segments: Tensor, num_segments: int, order: Tensor | None = None) -> Tensor:  # noqa: ARG001
    return values.new_empty(num_segments, values.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, segments, ctx.num_segments, _ = inputs
    ctx.save_for_backward(segments)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    from algoperf_torch.kernels.embedding import gather_rows

    (segments,) = ctx.saved_tensors
    return gather_rows(segments, [grad]), None, None, None


segment_sum.register_autograd(_backward, setup_context=_keep)
