"""Cross entropy without materialised probabilities: logits are read once for the loss and once for their gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch

BLOCK = 4096  # classes that a program holds at a time
NUM_WARPS = 8


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """As in `reference.py`."""
    rows, classes = logits.shape
    losses, lse = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    launch.launch(
        loss_kernel, (rows,), logits, targets, weights, losses, lse, classes, logits.stride(0), label_smoothing,
        BLOCK=_block(classes), num_warps=NUM_WARPS,
    )  # fmt: skip
    return losses, lse


def cross_entropy_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, weights: Tensor | None, lse: Tensor, label_smoothing: float
) -> Tensor:
    """As in `reference.py`."""
    rows, classes = logits.shape
    result = torch.empty(rows, classes, dtype=logits.dtype, device=logits.device)
    launch.launch(
        gradient_kernel, (rows,), grad, logits, targets, weights, lse, result, classes, logits.stride(0), grad.stride(0),
        label_smoothing, BLOCK=_block(classes), num_warps=NUM_WARPS,
    )  # fmt: skip
    return result


def _block(classes: int) -> int:
    return min(BLOCK, max(128, int(triton.next_power_of_2(classes))))


@triton.jit
def loss_kernel(logits, targets, weights, losses, lses, classes, row_stride, label_smoothing, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    weight = tl.cast(1.0, tl.float32)
    if weights is not None:
        weight = tl.load(weights + row).to(tl.float32)
    z_row = logits + row.to(tl.int64) * row_stride
    # Every lane keeps its own running maximum and sum; they are put together once, at the end.
    largest = tl.full([BLOCK], -1e30, tl.float32)
    exponentials = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z = tl.load(z_row + cols, mask=cols < classes, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, z)
        exponentials = exponentials * tl.exp(largest - larger) + tl.exp(z - larger)
        largest = larger
        total += tl.where(cols < classes, z, 0.0)
    top = tl.max(largest)
    log_sum = tl.log(tl.sum(exponentials * tl.exp(largest - top)))
    target = tl.load(targets + row)
    possible = (target >= 0) & (target < classes)
    hit = tl.load(z_row + tl.where(possible, target, 0)).to(tl.float32)
    hit = tl.where(possible, hit, float("nan"))
    e = tl.cast(label_smoothing, tl.float32)
    loss = log_sum + (1.0 - e) * (top - hit) + e * (top - tl.sum(total) / classes)  # small where all logits are large
    tl.store(losses + row, tl.where(weight == 0.0, 0.0, loss * weight))
    tl.store(lses + row, top + log_sum)


@triton.jit
def gradient_kernel(
    grads,
    logits,
    targets,
    weights,
    lses,
    result,
    classes,
    row_stride,
    grad_stride,
    label_smoothing,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    scale = tl.load(grads + row.to(tl.int64) * grad_stride).to(tl.float32)
    if weights is not None:
        scale *= tl.load(weights + row).to(tl.float32)
    z_row = logits + row.to(tl.int64) * row_stride
    out_row = result + row.to(tl.int64) * classes
    if scale == 0.0:  # nothing to read
        for start in range(0, classes, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            tl.store(out_row + cols, tl.zeros([BLOCK], out_row.dtype.element_ty), mask=cols < classes)
    else:
        lse, target = tl.load(lses + row), tl.load(targets + row)
        e = tl.cast(label_smoothing, tl.float32)
        for start in range(0, classes, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            z = tl.load(z_row + cols, mask=cols < classes, other=0.0).to(tl.float32)
            share = tl.exp(z - lse) - e / classes - tl.where(cols == target, 1.0 - e, 0.0)
            tl.store(out_row + cols, (share * scale).to(out_row.dtype.element_ty), mask=cols < classes)
