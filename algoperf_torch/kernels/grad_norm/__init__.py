"""The global gradient norm, and the factor that an update takes as `grad_scale` to clip it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.grad_norm import reference
from algoperf_torch.kernels.launch import DTYPES, TensorTable
from algoperf_torch.kernels.registry import runs_fused


def clip_coefficient_with_table(
    table: TensorTable | None, grads: Sequence[Tensor], max_norm: float
) -> tuple[Tensor, Tensor]:
    """`clip_coefficient` for eager callers that keep a `launch.TensorTable` between updates."""
    takes = grads and {grad.dtype for grad in grads}.issubset(DTYPES)
    if takes and runs_fused("clip_coefficient", grads[0].device, update=True):
        from algoperf_torch.kernels.grad_norm import fused

        return fused.clip_coefficient(grads, max_norm, table)
    return reference.clip_coefficient(grads, max_norm)


@torch.library.custom_op("algoperf::clip_coefficient", mutates_args=())
def clip_coefficient(grads: Sequence[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:
    """(norm, min(1, max_norm / (norm + 1e-6))) of all elements of all gradients together, float32, 0-d."""
    return clip_coefficient_with_table(None, grads, max_norm)


@clip_coefficient.register_fake
def _(grads: Sequence[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    like = grads[0] if grads else torch.empty(())
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_empty((), dtype=dtype), like.new_empty((), dtype=dtype)
