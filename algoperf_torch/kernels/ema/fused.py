"""The exponential moving average: one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles


def ema_(
    averages: Sequence[Tensor], params: Sequence[Tensor], weight: Tensor, table: launch.TensorTable | None = None
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    table = launch.refreshed(table, averages, params)
    table.launch(ema_kernel, launch.beside(weight, averages))


@triton.jit
def ema_kernel(
    pointers, chunks, first_chunk, num_tensors, weight_ptr,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    weight = tl.load(weight_ptr).to(tl.float32)
    tiles.update_tile(ema_arithmetic, (weight,), pointers, chunks, num_tensors, (0, 1), (0,), COLUMNS, CODES, BLOCK)


@triton.jit
def ema_arithmetic(values, scalars):
    return (tiles.lerp(values[0], values[1], scalars[0]),)
