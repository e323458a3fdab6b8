"""Label-smoothed, masked cross entropy over large vocabularies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.cross_entropy import reference
from algoperf_torch.kernels.registry import runs_fused

__all__ = ["cross_entropy"]


@torch.library.custom_op("algoperf::cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    if runs_fused("cross_entropy", logits.device):
        from algoperf_torch.kernels.cross_entropy import fused

        return fused.cross_entropy(logits, targets, weights, label_smoothing)
    return reference.cross_entropy(logits, targets, weights, label_smoothing)


@_cross_entropy.register_fake
def _(logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty(len(logits), dtype=dtype), logits.new_empty(len(logits), dtype=dtype)


@torch.library.custom_op("algoperf::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, weights: Tensor | None, lse: Tensor, label_smoothing: float
) -> Tensor:
    if runs_fused("cross_entropy", logits.device):
        from algoperf_torch.kernels.cross_entropy import fused

        return fused.cross_entropy_backward(grad, logits, targets, weights, lse, label_smoothing)
    return reference.cross_entropy_backward(grad, logits, targets, weights, lse, label_smoothing)


@_cross_entropy_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    logits: Tensor,
    targets: Tensor,  # noqa: ARG001
    weights: Tensor | None,  # noqa: ARG001
    lse: Tensor,  # noqa: ARG001
    label_smoothing: float,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, weights, ctx.label_smoothing = inputs
    ctx.save_for_backward(logits, targets, weights, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
    logits, targets, weights, lse = ctx.saved_tensors
    return _cross_entropy_backward(grad, logits, targets, weights, lse, ctx.label_smoothing), None, None, None


_cross_entropy.register_autograd(_backward, setup_context=_keep)


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Losses [rows], at least float32, of `logits` [rows, classes] against class indices [rows]; see `reference`.

    Differentiable once, with respect to the logits; rows of weight 0 are not read in the backward pass.
    """
    losses, _ = _cross_entropy(logits, targets, weights, label_smoothing)
    result: Tensor = losses
    return result
