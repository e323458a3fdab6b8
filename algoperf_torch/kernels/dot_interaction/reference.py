"""All inner products of the vectors of each example, in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def dot_interaction(vectors: Tensor) -> Tensor:
    """[batch, n (n + 1) / 2]: the upper triangle of x xᵀ with its diagonal, row by row, of every x of [batch, n, width]."""
    rows, cols = torch.triu_indices(vectors.shape[1], vectors.shape[1], device=vectors.device)
    return (vectors @ vectors.mT)[:, rows, cols]


def dot_interaction_backward(grad: Tensor, vectors: Tensor) -> Tensor:
    """The gradient with respect to the vectors: (g + gᵀ) x, with g the upper triangle that `grad` fills."""
    n = vectors.shape[1]
    rows, cols = torch.triu_indices(n, n, device=vectors.device)
    triangle = vectors.new_zeros(len(vectors), n, n)
    triangle[:, rows, cols] = grad
    return (triangle + triangle.mT) @ vectors
