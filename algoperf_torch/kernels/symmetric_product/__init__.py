"""x xᵀ over a batch of matrices, for Newton-Schulz iterations and the statistics of Shampoo and SOAP."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.registry import runs_fused
from algoperf_torch.kernels.symmetric_product import reference


@torch.library.custom_op("algoperf::symmetric_product", mutates_args=())
def symmetric_product(x: Tensor, addend: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """alpha x xᵀ + beta `addend` for every matrix x of [batch, n, k]; `addend` is symmetric, [batch, n, n]."""
    if runs_fused("symmetric_product", x.device, update=True):
        from algoperf_torch.kernels.symmetric_product import fused

        return fused.symmetric_product(x, addend, alpha=alpha, beta=beta)
    return reference.symmetric_product(x, addend, alpha=alpha, beta=beta)


@symmetric_product.register_fake
def _(x: Tensor, addend: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:2], x.shape[1])


@torch.library.custom_op("algoperf::symmetric_update_", mutates_args={"statistic"})
def symmetric_update_(statistic: Tensor, x: Tensor, weight: Tensor) -> None:
    """statistic <- (1 - weight) statistic + weight x xᵀ in place, for [batch, n, n] and [batch, n, k]; `weight` is 0-d."""
    if runs_fused("symmetric_update_", statistic.device, update=True):
        from algoperf_torch.kernels.symmetric_product import fused

        fused.symmetric_update_(statistic, x, weight)
    else:
        reference.symmetric_update_(statistic, x, weight)
