"""Crops of decoded images, resized, flipped and normalised: one program for each row of the result, all in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch


def crop_resize(
    pixels: Tensor, images: Tensor, boxes: Tensor, flips: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """As in `reference.py`."""
    result = torch.empty(len(images), size, size, 3, device=pixels.device)
    factors = [1 / (255 * value) for value in std]
    shifts = [-m / s for m, s in zip(mean, std, strict=True)]
    launch.launch(
        crop_resize_kernel, (size, len(images)), pixels, images, boxes, flips.view(torch.uint8), result, size, *factors,
        *shifts, WIDTH=max(16, int(triton.next_power_of_2(size))), num_warps=4,
    )  # fmt: skip
    return result.permute(0, 3, 1, 2)


@triton.jit
def taps(position, scale, length):
    """(first tap, one past the last, centre, one over the filter's radius) along one axis, for outputs at `position`."""
    radius = tl.maximum(scale, 1.0)
    centre = scale * (position.to(tl.float32) + 0.5)
    first = tl.maximum((centre - radius + 0.5).to(tl.int32), 0)
    end = tl.minimum((centre + radius + 0.5).to(tl.int32), length)
    return first, end, centre, 1.0 / radius


@triton.jit
def triangle(tap, centre, sharpness):
    return tl.maximum(1.0 - tl.abs((tap.to(tl.float32) + 0.5 - centre) * sharpness), 0.0)


@triton.jit
def crop_resize_kernel(
    pixels,
    images,
    boxes,
    flips,
    result,
    size,
    factor_r,
    factor_g,
    factor_b,
    shift_r,
    shift_g,
    shift_b,
    WIDTH: tl.constexpr,
):
    y, image = tl.program_id(0), tl.program_id(1)
    start, width = tl.load(images + 3 * image), tl.load(images + 3 * image + 2)
    top, left = tl.load(boxes + 4 * image), tl.load(boxes + 4 * image + 1)
    rows, cols = tl.load(boxes + 4 * image + 2).to(tl.int32), tl.load(boxes + 4 * image + 3).to(tl.int32)
    x = tl.arange(0, WIDTH)
    row_scale, col_scale = rows.to(tl.float32) / size, cols.to(tl.float32) / size
    first_row, end_row, row_centre, row_sharpness = taps(y, row_scale, rows)
    first_col, end_col, col_centre, col_sharpness = taps(x, col_scale, cols)
    num_cols = tl.max(tl.where(x < size, end_col - first_col, 0))
    red = tl.zeros([WIDTH], tl.float32)
    green = tl.zeros([WIDTH], tl.float32)
    blue = tl.zeros([WIDTH], tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for row in range(first_row, end_row):
        row_weight = triangle(tl.cast(row, tl.int32), row_centre, row_sharpness)
        line = pixels + start + ((top + row) * width + left) * 3
        for number in range(num_cols):
            col = first_col + number
            mask = (col < end_col) & (x < size)
            weight = tl.where(mask, triangle(col, col_centre, col_sharpness) * row_weight, 0.0)
            red += weight * tl.load(line + col * 3, mask=mask, other=0).to(tl.float32)
            green += weight * tl.load(line + col * 3 + 1, mask=mask, other=0).to(tl.float32)
            blue += weight * tl.load(line + col * 3 + 2, mask=mask, other=0).to(tl.float32)
            total += weight
    place = tl.where(tl.load(flips + image) != 0, size - 1 - x, x)
    out = result + ((image.to(tl.int64) * size + y) * size + place) * 3
    tl.store(out, red / total * tl.cast(factor_r, tl.float32) + tl.cast(shift_r, tl.float32), mask=x < size)
    tl.store(out + 1, green / total * tl.cast(factor_g, tl.float32) + tl.cast(shift_g, tl.float32), mask=x < size)
    tl.store(out + 2, blue / total * tl.cast(factor_b, tl.float32) + tl.cast(shift_b, tl.float32), mask=x < size)
