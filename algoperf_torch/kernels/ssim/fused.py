"""Structural similarity of image pairs: both images are read once from memory, their five window sums stay in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch
from algoperf_torch.kernels.ssim.reference import WINDOW

ROWS, COLS = 8, 64  # windows of a program


def ssim(a: Tensor, b: Tensor, mean: Tensor, std: Tensor, volume_max: Tensor) -> Tensor:
    """As in `reference.py`, for contiguous images."""
    batch, height, width = a.shape
    rows, cols = height - WINDOW + 1, width - WINDOW + 1
    grid = (batch, triton.cdiv(rows, ROWS), triton.cdiv(cols, COLS))
    partials = torch.empty(grid, dtype=torch.float32, device=a.device)
    launch.launch(
        ssim_kernel, grid, a, b, mean, std, volume_max, partials, height, width,
        WINDOW=WINDOW, ROWS=ROWS, COLS=COLS, num_warps=4,
    )  # fmt: skip
    return (partials.sum(dim=(1, 2)) / (rows * cols)).clamp(-1, 1)


@triton.jit
def ssim_kernel(
    a, b, means, stds, maxima, partials, height, width, WINDOW: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    image = tl.program_id(0)
    mean, std, data_range = tl.load(means + image), tl.load(stds + image), tl.load(maxima + image)
    data_range = tl.where(data_range == 0.0, 1.0, data_range)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(2) * COLS + tl.arange(0, COLS)
    mask = (rows <= height - WINDOW)[:, None] & (cols <= width - WINDOW)[None, :]
    corner = image.to(tl.int64) * height * width + rows[:, None] * width + cols[None, :]
    sum_x = tl.zeros([ROWS, COLS], tl.float32)
    sum_y = tl.zeros([ROWS, COLS], tl.float32)
    sum_xx = tl.zeros([ROWS, COLS], tl.float32)
    sum_yy = tl.zeros([ROWS, COLS], tl.float32)
    sum_xy = tl.zeros([ROWS, COLS], tl.float32)
    for i in range(WINDOW):
        for j in tl.static_range(WINDOW):
            place = corner + i * width + j
            x = tl.load(a + place, mask=mask, other=0.0).to(tl.float32) * std + mean
            y = tl.load(b + place, mask=mask, other=0.0).to(tl.float32) * std + mean
            sum_x += x
            sum_y += y
            sum_xx += x * x
            sum_yy += y * y
            sum_xy += x * y
    share: tl.constexpr = 1.0 / (WINDOW * WINDOW)
    sample: tl.constexpr = WINDOW * WINDOW / (WINDOW * WINDOW - 1.0)
    mean_x, mean_y = sum_x * share, sum_y * share
    var_x = sample * (sum_xx * share - mean_x * mean_x)
    var_y = sample * (sum_yy * share - mean_y * mean_y)
    covariance = sample * (sum_xy * share - mean_x * mean_y)
    c1, c2 = 0.0001 * data_range * data_range, 0.0009 * data_range * data_range
    above = (2.0 * mean_x * mean_y + c1) * (2.0 * covariance + c2)
    below = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    place = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(2) + tl.program_id(2)
    tl.store(partials + place, tl.sum(tl.where(mask, above / below, 0.0)))
