"""Stochastic gradient descent with heavy-ball or Nesterov momentum: one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    columns = (params, grads, momentum_buffers) if momentum_buffers else (params, grads)
    table = launch.refreshed(table, *columns)
    table.launch(sgd_kernel, launch.beside(lr, params), grad_scale, momentum, weight_decay, NESTEROV=nesterov)


@triton.jit
def sgd_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, grad_scale_ptr, momentum, weight_decay,
    NESTEROV: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scalars = (
        tiles.optional_scale(grad_scale_ptr), tl.load(lr_ptr).to(tl.float32), tiles.f32(momentum),
        tiles.f32(weight_decay), NESTEROV,
    )  # fmt: skip
    READS: tl.constexpr = (0, 1, 2) if COLUMNS == 3 else (0, 1)
    tiles.update_tile(sgd_arithmetic, scalars, pointers, chunks, num_tensors, READS, (0, 2), COLUMNS, CODES, BLOCK)


@triton.jit
def sgd_arithmetic(values, scalars):
    scale, lr, momentum, weight_decay, NESTEROV = scalars
    p = values[0]
    g = values[1] * scale + p * weight_decay
    if len(values) == 3:
        b = values[2] * momentum + g
        if NESTEROV:
            return p - lr * (g + b * momentum), b
        else:
            return p - lr * b, b
    else:
        return (p - lr * g,)
