"""Newton-Schulz orthogonalisation of a batch of matrices of one shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.newton_schulz import reference
from algoperf_torch.kernels.newton_schulz.reference import COEFFICIENTS
from algoperf_torch.kernels.registry import runs_fused

__all__ = ["COEFFICIENTS", "newton_schulz"]


@torch.library.custom_op("algoperf::newton_schulz", mutates_args=())
def _newton_schulz(x: Tensor, steps: int, eps: float, coefficients: Sequence[float]) -> Tensor:
    if runs_fused("newton_schulz", x.device, update=True):
        from algoperf_torch.kernels.newton_schulz import fused

        return fused.newton_schulz(x, steps, eps, coefficients)
    return reference.newton_schulz(x, steps, eps, coefficients)


@_newton_schulz.register_fake
def _(x: Tensor, steps: int, eps: float, coefficients: Sequence[float]) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def newton_schulz(x: Tensor, steps: int = 5, eps: float = 1e-7, coefficients: Sequence[float] = COEFFICIENTS) -> Tensor:
    """Matrices with the singular vectors of x [batch, rows, columns] and singular values near 1; see `reference`."""
    result: Tensor = _newton_schulz(x, steps, eps, coefficients)
    return result
