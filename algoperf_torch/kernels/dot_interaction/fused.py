"""All inner products of the vectors of each example: one tile of a product, of which the upper triangle is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch


def dot_interaction(vectors: Tensor) -> Tensor:
    """As in `reference.py`, for up to 64 vectors. float32 in TF32 where PyTorch's own products may be."""
    batch, n, width = vectors.shape
    result = torch.empty(batch, n * (n + 1) // 2, dtype=vectors.dtype, device=vectors.device)
    _launch(forward_kernel, (batch,), vectors, vectors, result, n, width, depth=32)
    return result


def dot_interaction_backward(grad: Tensor, vectors: Tensor) -> Tensor:
    """As in `reference.py`."""
    batch, n, width = vectors.shape
    result = torch.empty_like(vectors)
    grid = (batch, triton.cdiv(width, 64))
    _launch(backward_kernel, grid, grad.contiguous(), vectors, result, n, width, depth=64)
    return result


def _launch(
    kernel: object,
    grid: tuple[int, ...],
    given: Tensor,
    vectors: Tensor,
    result: Tensor,
    n: int,
    width: int,
    *,
    depth: int,
) -> None:
    precision = "tf32" if torch.get_float32_matmul_precision() != "highest" else "tf32x3"
    size = max(16, int(triton.next_power_of_2(n)))
    launch.launch(
        kernel, grid, given, vectors, result, n, width, PRECISION=precision, SIZE=size, DEPTH=depth, num_warps=4
    )


@triton.jit
def forward_kernel(given, vectors, result, n, width, PRECISION: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    example = tl.program_id(0).to(tl.int64)
    rows, inner = tl.arange(0, SIZE), tl.arange(0, DEPTH)
    tile = vectors + example * n * width + rows[:, None] * width + inner[None, :]
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for start in range(0, width, DEPTH):
        x = tl.load(tile + start, mask=(rows < n)[:, None] & (start + inner < width)[None, :], other=0.0)
        total = tl.dot(x, tl.trans(x), total, input_precision=PRECISION)
    i, j = rows[:, None], rows[None, :]
    place = i * n - i * (i - 1) // 2 + j - i
    out = result + example * (n * (n + 1) // 2) + place
    tl.store(out, total.to(result.dtype.element_ty), mask=(j >= i) & (j < n))


@triton.jit
def backward_kernel(grad, vectors, result, n, width, PRECISION: tl.constexpr, SIZE: tl.constexpr, DEPTH: tl.constexpr):
    example = tl.program_id(0).to(tl.int64)
    rows, cols = tl.arange(0, SIZE), tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    i, j = rows[:, None], rows[None, :]
    low, high = tl.minimum(i, j), tl.maximum(i, j)
    place = low * n - low * (low - 1) // 2 + high - low
    g = tl.load(grad + example * (n * (n + 1) // 2) + place, mask=(high < n), other=0.0).to(tl.float32)
    g = tl.where(i == j, 2.0 * g, g).to(vectors.dtype.element_ty)
    here = example * n * width + rows[:, None] * width + cols[None, :]
    mask = (rows < n)[:, None] & (cols < width)[None, :]
    x = tl.load(vectors + here, mask=mask, other=0.0)
    total = tl.dot(g, x, input_precision=PRECISION)
    tl.store(result + here, total.to(result.dtype.element_ty), mask=mask)
