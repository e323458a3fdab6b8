"""Symmetric matrix products over a batch, in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor


def symmetric_product(x: Tensor, addend: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """alpha x xᵀ + beta `addend` for every matrix x of [batch, n, k]; `addend` is symmetric, [batch, n, n]."""
    product = alpha * (x @ x.mT)
    return product if addend is None else product + beta * addend


def symmetric_update_(statistic: Tensor, x: Tensor, weight: Tensor) -> None:
    """statistic <- (1 - weight) statistic + weight x xᵀ in place, for [batch, n, n] and [batch, n, k]; `weight` is 0-d.

    The running second moments that Shampoo (Gupta et al., 2018, arXiv:1802.09568) and SOAP (Vyas et al., 2024,
    arXiv:2409.11321) keep for the rows of a gradient, and with x transposed for its columns.
    """
    product = x.to(statistic.dtype) @ x.to(statistic.dtype).mT
    statistic.lerp_(product, weight.to(statistic.dtype))
