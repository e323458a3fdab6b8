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
    weight = launch.beside(weight, [statistic])
    held = statistic.contiguous()
    _launch(x, held, held, weight, 0.0, 0.0, "tf32x3")
    if held is not statistic:
        statistic.copy_(held)


def _launch(
    x: Tensor, addend: Tensor | None, out: Tensor, weight: Tensor | None, alpha: float, beta: float, precision: str
) -> None:
    batch, n, k = x.shape
    transposed = x.stride(1) == 1 and x.stride(2) != 1
    if not transposed and x.stride(2) != 1:
        x = x.contiguous()
    lead = x.stride(2) if transposed else x.stride(1)
    addend = addend if addend is None else addend.contiguous()
    tile, depth = (128, 64) if x.dtype is torch.bfloat16 else (64, 32)
    if n <= tile // 2:
        tile = max(16, int(triton.next_power_of_2(n)))
    tiles = triton.cdiv(n, tile)
    launch.launch(
        symmetric_kernel, (tiles, tiles, batch), x, addend, out, weight, n, k, x.stride(0), lead, alpha, beta,
        TRANSPOSED=transposed, EIGHTS=all(size % 8 == 0 for size in (n, k, lead, x.stride(0))), PRECISION=precision,
        TILE=tile, DEPTH=depth, num_warps=8 if tile == 128 else 4,
    )  # fmt: skip


@triton.jit
def symmetric_kernel(
    x_ptr, addend_ptr, out_ptr, weight_ptr, n, k, batch_stride, lead, alpha, beta,
    TRANSPOSED: tl.constexpr, EIGHTS: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    i, j, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if j > i:
        return
    if EIGHTS:  # by itself, Triton notices multiples of 16 only
        n, k, batch_stride, lead = n // 8 * 8, k // 8 * 8, batch_stride // 8 * 8, lead // 8 * 8
    rows, cols, inner = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE), tl.arange(0, DEPTH)
    base = x_ptr + batch * batch_stride
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, k, DEPTH):
        depth = start + inner
        if TRANSPOSED:
            left = rows[:, None] + depth[None, :].to(tl.int64) * lead
            right = cols[:, None] + depth[None, :].to(tl.int64) * lead
        else:
            left = rows[:, None].to(tl.int64) * lead + depth[None, :]
            right = cols[:, None].to(tl.int64) * lead + depth[None, :]
        a = tl.load(base + left, mask=(rows < n)[:, None] & (depth < k)[None, :], other=0.0)
        b = tl.load(base + right, mask=(cols < n)[:, None] & (depth < k)[None, :], other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    mask = (rows < n)[:, None] & (cols < n)[None, :]
    here = batch * n * n + rows[:, None].to(tl.int64) * n + cols[None, :]
    if weight_ptr is not None:
        held = tl.load(addend_ptr + here, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr).to(tl.float32)
        total = held + weight * (total - held)
    else:
        total = tl.cast(alpha, tl.float32) * total
        if addend_ptr is not None:
            held = tl.load(addend_ptr + here, mask=mask, other=0.0).to(tl.float32)
            total += tl.cast(beta, tl.float32) * held
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + here, out, mask=mask)
    if i != j:
        there = batch * n * n + cols[:, None].to(tl.int64) * n + rows[None, :]
        tl.store(out_ptr + there, tl.trans(out), mask=tl.trans(mask))
