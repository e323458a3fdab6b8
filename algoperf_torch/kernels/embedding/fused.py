"""Rows of a table that is held in parts: read where they lie, without putting the parts together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch

ROWS = 16  # of a program


def gather_rows(ids: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """As in `reference.py`."""
    rows, width = parts[0].shape
    result = torch.empty(*ids.shape, width, dtype=parts[0].dtype, device=ids.device)
    block = min(256, int(triton.next_power_of_2(width)))
    launch.launch(
        gather_kernel, (triton.cdiv(ids.numel(), ROWS), triton.cdiv(width, block)), ids.contiguous(),
        launch.addresses(parts), result, ids.numel(), rows, len(parts) * rows, width,
        ALIGNED=width % 16 == 0 and all(part.data_ptr() % 16 == 0 for part in parts), ROWS=ROWS, WIDTH=block,
    )  # fmt: skip
    return result


@triton.jit
def gather_kernel(
    ids, addresses, result, count, part_rows, num_rows, width,
    ALIGNED: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row = tl.load(ids + places, mask=places < count, other=-1).to(tl.int64)
    inside = (row >= 0) & (row < num_rows)
    row = tl.where(inside, row, 0)
    base = tl.load(addresses + row // part_rows).to(tl.pointer_type(result.dtype.element_ty))
    if ALIGNED:
        base = tl.multiple_of(base, 16)
        width = width // 16 * 16
    source = base[:, None] + (row % part_rows)[:, None] * width + cols[None, :]
    held = tl.load(source, mask=inside[:, None] & (cols < width)[None, :], other=0.0)
    target = result + places[:, None] * width + cols[None, :]
    tl.store(target, held, mask=(places < count)[:, None] & (cols < width)[None, :])
