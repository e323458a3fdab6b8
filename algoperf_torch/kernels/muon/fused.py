"""Muon before and after its orthogonalisation: one launch each for all matrices."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles


def muon_momentum_(
    momenta: Sequence[Tensor],
    grads: Sequence[Tensor],
    directions: Sequence[Tensor],
    grad_scale: Tensor | None = None,
    *,
    momentum: float,
    nesterov: bool = True,
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    table = launch.refreshed(table, momenta, grads, directions)
    table.launch(muon_momentum_kernel, grad_scale, 1 - momentum, NESTEROV=nesterov)


def muon_apply_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    factors: Sequence[Tensor],
    lr: Tensor,
    *,
    weight_decay: float,
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`."""
    table = launch.refreshed(table, params, directions, extras=(factors,))
    table.launch(muon_apply_kernel, launch.beside(lr, params), weight_decay)


@triton.jit
def muon_momentum_kernel(
    pointers, chunks, first_chunk, num_tensors, grad_scale_ptr, one_minus_momentum,
    NESTEROV: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scalars = (tiles.optional_scale(grad_scale_ptr), tiles.f32(one_minus_momentum), NESTEROV)
    tiles.update_tile(muon_momentum, scalars, pointers, chunks, num_tensors, (0, 1), (0, 2), COLUMNS, CODES, BLOCK)


@triton.jit
def muon_momentum(values, scalars):
    scale, one_minus_momentum, NESTEROV = scalars
    g = values[1] * scale
    m = tiles.lerp(values[0], g, one_minus_momentum)
    if NESTEROV:
        return m, tiles.lerp(m, g, one_minus_momentum)
    else:
        return m, m


@triton.jit
def muon_apply_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, weight_decay,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lr = tl.load(lr_ptr).to(tl.float32)
    factor = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    scalars = (1.0 - lr * tiles.f32(weight_decay), lr * factor)
    tiles.update_tile(muon_apply, scalars, pointers, chunks, num_tensors, (0, 1), (0,), COLUMNS, CODES, BLOCK)


@triton.jit
def muon_apply(values, scalars):
    return (values[0] * scalars[0] - scalars[1] * values[1],)
