"""The norm of all gradients and the factor that clips them: one launch, the last program adds up in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles


def clip_coefficient(
    grads: Sequence[Tensor], max_norm: float, table: launch.TensorTable | None = None
) -> tuple[Tensor, Tensor]:
    """As in `reference.py`. `table` keeps what is known of the tensors from one call to the next."""
    table = launch.refreshed(table, grads)
    device = table.pointers.device
    if not table.num_programs:
        return torch.zeros((), device=device), torch.ones((), device=device)
    partials, arrivals, _ = table.workspace(1)
    norm, coefficient = torch.empty((), device=device), torch.empty((), device=device)
    table.launch(grad_norm_kernel, partials, arrivals, norm, coefficient, max_norm)
    return norm, coefficient


@triton.jit
def grad_norm_kernel(
    pointers, chunks, first_chunk, num_tensors, partials, arrivals, norm_ptr, coefficient_ptr, max_norm,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tiles.update_tile(squares, (), pointers, chunks, num_tensors, (0,), (), COLUMNS, CODES, BLOCK, partials, SUMS=1)
    if tiles.is_last(arrivals + num_tensors, tl.num_programs(0)):
        norm = tl.sqrt(tiles.sum_of(partials, 0, tl.num_programs(0), BLOCK))
        tl.store(norm_ptr, norm)
        tl.store(coefficient_ptr, tl.minimum(tiles.f32(max_norm) / (norm + 1e-6), 1.0))


@triton.jit
def squares(values, scalars):
    return (values[0] * values[0],)
