"""Orthogonalisation by Newton-Schulz iterations: two products of each are symmetric and cost half, the third is a library's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.newton_schulz.reference import COEFFICIENTS
from algoperf_torch.kernels.symmetric_product.fused import symmetric_product


def newton_schulz(x: Tensor, steps: int = 5, eps: float = 1e-7, coefficients: Sequence[float] = COEFFICIENTS) -> Tensor:
    """As in `reference.py`."""
    if len(coefficients) not in (3, 3 * steps):
        raise ValueError(f"{len(coefficients)} coefficients. Must be 3, or 3 for each of {steps} steps.")
    tall = x.shape[1] > x.shape[2]
    y = x.mT if tall else x
    y = y / torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True, dtype=torch.float32).clamp(min=eps).to(y.dtype)
    for i in range(steps):
        a, b, c = coefficients[3 * i : 3 * i + 3] if len(coefficients) > 3 else coefficients
        gram = symmetric_product(y)
        y = torch.baddbmm(y, symmetric_product(gram, gram, alpha=c, beta=b), y, beta=a)
    return (y.mT if tall else y).contiguous()
