"""Precision rules that all references share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def computed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the precision of the arithmetic: float32, or float64 for float64."""
    return tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)


def write_(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Rounds each value to the dtype of its target, once."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def bias_correction(step: Tensor, beta: float) -> Tensor:
    """1 - beta ** step, in float64: in float32 it would lose its digits in the first steps."""
    return -torch.expm1(step.double() * log_beta(beta))


def log_beta(beta: float) -> float:
    """log(beta), with a stand-in for beta = 0 after which 1 - beta ** step is 1."""
    return math.log(beta) if beta > 0 else -100.0
