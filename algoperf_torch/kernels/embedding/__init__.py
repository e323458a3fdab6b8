"""Embedding look-up in a table that is held in parts, with a deterministic dense gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.embedding import reference
from algoperf_torch.kernels.registry import runs_fused
from algoperf_torch.kernels.segment_sum import segment_sum


@torch.library.custom_op("algoperf::gather_rows", mutates_args=())
def gather_rows(ids: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """[*ids.shape, width]: rows of the table that `parts` [rows, width] form one below the other; zeros for ids outside.

    The gradient is dense, one tensor for each part, and the same to the last bit in every run.
    """
    if runs_fused("gather_rows", ids.device):
        from algoperf_torch.kernels.embedding import fused

        return fused.gather_rows(ids, [part.contiguous() for part in parts])
    return reference.gather_rows(ids, parts)


@gather_rows.register_fake
def _(ids: Tensor, parts: Sequence[Tensor]) -> Tensor:
    return parts[0].new_empty(*ids.shape, parts[0].shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ids, parts = inputs
    ctx.save_for_backward(ids)
    ctx.num_parts, ctx.part_rows = len(parts), len(parts[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[None, list[Tensor]]:
    (ids,) = ctx.saved_tensors
    ids = ids.reshape(-1)
    order = ids.argsort(stable=True)
    total = segment_sum(grad.reshape(len(ids), grad.shape[-1]), ids, ctx.num_parts * ctx.part_rows, order)
    return None, list(total.split(ctx.part_rows)) if ctx.num_parts > 1 else [total]


gather_rows.register_autograd(_backward, setup_context=_keep)
