"""Orthogonalisation by Newton-Schulz iterations over a batch, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of every iteration: Jordan et al. (2024), "Muon"


def newton_schulz(x: Tensor, steps: int = 5, eps: float = 1e-7, coefficients: Sequence[float] = COEFFICIENTS) -> Tensor:
    """Matrices with the singular vectors of x [batch, rows, columns] and singular values near 1.

    With a, b, c the coefficients of the iteration (three numbers for all, or three for each):

        x = x / max(|x|, eps)        x <- a x + (b x xᵀ + c (x xᵀ)²) x, transposed where there are more rows than columns
    """
    if len(coefficients) not in (3, 3 * steps):
        raise ValueError(f"{len(coefficients)} coefficients. Must be 3, or 3 for each of {steps} steps.")
    tall = x.shape[1] > x.shape[2]
    y = x.mT if tall else x
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for i in range(steps):
        a, b, c = coefficients[3 * i : 3 * i + 3] if len(coefficients) > 3 else coefficients
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    result: Tensor = y.mT if tall else y
    return result.contiguous()
