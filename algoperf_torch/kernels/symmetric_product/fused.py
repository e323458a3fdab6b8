"""Symmetric matrix products over a batch: only tiles on and below the diagonal are computed, and written twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch


def symmetric_product(x: Tensor, addend: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """As in `reference.py`. float32 is multiplied in TF32 where PyTorch's own products may, else in three TF32 products."""
    out = torch.empty(*x.shape[:2], x.shape[1], dtype=x.dtype, device=x.device)
    precision = "tf32" if torch.get_float32_matmul_precision() != "highest" else "tf32x3"
    _launch(x, addend, out, None, alpha, beta, precision)
    return out


def symmetric_update_(statistic: Tensor, x: Tensor, weight: Tensor) -> None:
    """As in `reference.py`, in float32 precision: a preconditioner's small eigenvalues must survive."""
    _launch(x, statistic, statistic, launch.beside(weight, [statistic]), 0.0, 0.0, "tf32x3")


def _launch(
    x: Tensor, addend: Tensor | None, out: Tensor, weight: Tensor | None, alpha: float, beta: float, precision: str
) -> None:
    batch, n, k = x.shape
    tile, depth = (128, 64) if x.dtype is torch.bfloat16 else (64, 32)
    if n <= tile // 2:
        tile = max(16, triton.next_power_of_2(n))
    tiles = triton.cdiv(n, tile)
    launch.launch(
        symmetric_kernel, (tiles, tiles, batch), x, addend if addend is not None else out, out, weight, n, k, *x.stride(),
        *(addend.stride() if addend is not None else (0, 0, 0)), *out.stride(), alpha, beta,
        ADD=addend is not None, PRECISION=precision, TILE=tile, DEPTH=depth, num_warps=8 if tile == 128 else 4,
    )  # fmt: skip


@triton.jit
def symmetric_kernel(
    x_ptr, addend_ptr, out_ptr, weight_ptr, n, k, x_batch, x_row, x_col, addend_batch, addend_row, addend_col, out_batch,
    out_row, out_col, alpha, beta,
    ADD: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    i, j, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if j > i:
        return
    rows, cols, inner = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE), tl.arange(0, DEPTH)
    left = x_ptr + batch * x_batch + rows.to(tl.int64)[:, None] * x_row + inner[None, :] * x_col
    right = x_ptr + batch * x_batch + cols.to(tl.int64)[:, None] * x_row + inner[None, :] * x_col
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, k, DEPTH):
        inside = (start + inner < k)[None, :]
        a = tl.load(left, mask=(rows < n)[:, None] & inside, other=0.0)
        b = tl.load(right, mask=(cols < n)[:, None] & inside, other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
        left += DEPTH * x_col
        right += DEPTH * x_col
    mask = (rows < n)[:, None] & (cols < n)[None, :]
    if ADD:
        addend = (
            addend_ptr + batch * addend_batch + rows.to(tl.int64)[:, None] * addend_row + cols[None, :] * addend_col
        )
        held = tl.load(addend, mask=mask, other=0.0).to(tl.float32)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr).to(tl.float32)
            total = held + weight * (total - held)
        else:
            total = tl.cast(alpha, tl.float32) * total + tl.cast(beta, tl.float32) * held
    else:
        total = tl.cast(alpha, tl.float32) * total
    out = total.to(out_ptr.dtype.element_ty)
    base = out_ptr + batch * out_batch
    tl.store(base + rows.to(tl.int64)[:, None] * out_row + cols[None, :] * out_col, out, mask=mask)
    if i != j:
        tl.store(
            base + cols.to(tl.int64)[:, None] * out_row + rows[None, :] * out_col, tl.trans(out), mask=tl.trans(mask)
        )
