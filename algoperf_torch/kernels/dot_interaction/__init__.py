"""The pairwise products of DLRM, with their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.dot_interaction import reference
from algoperf_torch.kernels.registry import runs_fused


@torch.library.custom_op("algoperf::dot_interaction", mutates_args=())
def dot_interaction(vectors: Tensor) -> Tensor:
    """[batch, n (n + 1) / 2]: the upper triangle of x xᵀ with its diagonal, row by row, of every x of [batch, n, width].

    Differentiable once.
    """
    if runs_fused("dot_interaction", vectors.device):
        from algoperf_torch.kernels.dot_interaction import fused

        return fused.dot_interaction(vectors.contiguous())
    return reference.dot_interaction(vectors)


@dot_interaction.register_fake
def _(vectors: Tensor) -> Tensor:
    batch, n, _ = vectors.shape
    return vectors.new_empty(batch, n * (n + 1) // 2)


@torch.library.custom_op("algoperf::dot_interaction_backward", mutates_args=())
def _dot_interaction_backward(grad: Tensor, vectors: Tensor) -> Tensor:
    if runs_fused("dot_interaction", vectors.device):
        from algoperf_torch.kernels.dot_interaction import fused

        return fused.dot_interaction_backward(grad, vectors.contiguous())
    return reference.dot_interaction_backward(grad, vectors)


@_dot_interaction_backward.register_fake
def _(grad: Tensor, vectors: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(vectors, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[0])


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    result: Tensor = _dot_interaction_backward(grad, *ctx.saved_tensors)
    return result


dot_interaction.register_autograd(_backward, setup_context=_keep)
