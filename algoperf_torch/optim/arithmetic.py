"""What the update rules share: the dtype of their state, bias corrections, norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from algoperf_torch.kernels import registry
from algoperf_torch.kernels.launch import DTYPES
from algoperf_torch.kernels.symmetric_product import symmetric_update_

Scalar = float | Tensor  # a number or a 0-d tensor


def state_dtype(param: Tensor) -> torch.dtype:
    """Statistics of half-precision parameters are kept in float32; the update is rounded once, into the parameter."""
    return torch.promote_types(param.dtype, torch.float32)


def zeros_for(param: Tensor) -> Tensor:
    """A statistic of the parameter's shape, strides and device, all zeros."""
    return torch.zeros_like(param, dtype=state_dtype(param))


def bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step as a 0-d tensor; accurate in float32 also where beta^step is close to 1."""
    return -torch.expm1(step * (math.log(beta) if beta > 0 else -math.inf))


def move_second_moment_(statistic: Tensor, matrix: Tensor, weight: float) -> None:
    """Moves `statistic` [n, n] towards matrix matrix^T by a weight; on a CUDA device only half of it is computed."""
    if registry.updates_fused(statistic.device) and {statistic.dtype, matrix.dtype} <= set(DTYPES):
        symmetric_update_(statistic[None], matrix[None], torch.full((), weight, device=statistic.device))
    else:
        statistic.lerp_(matrix @ matrix.mT, weight)


def inverse_root(matrix: Tensor, power: float, eps: float) -> Tensor | None:
    """(matrix + eps largest eigenvalue I)^(-1 / power) of a symmetric matrix [n, n]; `None` where it is not finite.

    Waits for the device.
    """
    if not bool(torch.isfinite(matrix).all()):
        return None
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(0) + values[-1].clamp_min(torch.finfo(values.dtype).tiny) * eps
    result: Tensor = (vectors * values.pow(-1 / power)) @ vectors.mT
    return result


def eigenbasis(matrix: Tensor) -> Tensor | None:
    """Eigenvectors [n, n] of a symmetric matrix, largest eigenvalue first; `None` where it is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return None
    vectors: Tensor = torch.linalg.eigh(matrix)[1].flip(-1)
    return vectors
