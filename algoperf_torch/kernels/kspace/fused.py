"""Images from masked k-space columns: mask, shift and transpose in one kernel, a library's Fourier transform, then magnitude,
crop and statistics of each row in one kernel and the normalisation in another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch

TILE = 32


def reconstruct(
    measured: Tensor, kept: Tensor, targets: Tensor, limit: float = 6.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As in `reference.py`, for contiguous tensors; `crop` is at most 1024."""
    batch, width, crop = measured.shape
    device = measured.device
    spectrum = torch.empty(batch, crop, width, 2, device=device)
    launch.launch(
        mask_kernel, (triton.cdiv(width, TILE), triton.cdiv(crop, TILE), batch), torch.view_as_real(measured),
        kept.view(torch.uint8), spectrum, width, crop, TILE=TILE, num_warps=4,
    )  # fmt: skip
    image = torch.view_as_real(torch.fft.ifft(torch.view_as_complex(spectrum), norm="ortho"))
    pixels, inputs, normalised = (torch.empty(batch, crop, crop, device=device) for _ in range(3))
    rows = torch.empty(2, batch, crop, device=device)
    mean, std = torch.empty(batch, device=device), torch.empty(batch, device=device)
    size = max(16, int(triton.next_power_of_2(crop)))
    launch.launch(magnitude_kernel, (crop, batch), image, pixels, rows, width, crop, SIZE=size, num_warps=4)
    launch.launch(
        normalise_kernel, (crop, batch), pixels, targets, rows, inputs, normalised, mean, std, crop, limit, SIZE=size,
        num_warps=4,
    )  # fmt: skip
    return inputs, normalised, mean, std


@triton.jit
def mask_kernel(measured, kept, spectrum, width, crop, TILE: tl.constexpr):
    example = tl.program_id(2).to(tl.int64)
    column, row = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = (column < width)[:, None] & (row < crop)[None, :]
    used = tl.load(kept + example * width + column, mask=column < width, other=0) != 0
    place = 2 * (example * width * crop + column[:, None] * crop + row[None, :])
    re = tl.load(measured + place, mask=mask & used[:, None], other=0.0)
    im = tl.load(measured + place + 1, mask=mask & used[:, None], other=0.0)
    shifted = (column + width - width // 2) % width
    place = 2 * (example * width * crop + row[None, :] * width + shifted[:, None])
    tl.store(spectrum + place, re, mask=mask)
    tl.store(spectrum + place + 1, im, mask=mask)


@triton.jit
def magnitude_kernel(image, pixels, rows, width, crop, SIZE: tl.constexpr):
    row, example = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x = tl.arange(0, SIZE)
    inside = x < crop
    column = ((width - crop) // 2 + width - width // 2 + x) % width  # crop, then undo the shift
    place = image + 2 * ((example * crop + row) * width + column)
    re, im = tl.load(place, mask=inside, other=0.0), tl.load(place + 1, mask=inside, other=0.0)
    value = tl.sqrt(re * re + im * im)
    tl.store(pixels + (example * crop + row) * crop + x, value, mask=inside)
    mean = tl.sum(value) / crop
    distance = tl.where(inside, value - mean, 0.0)
    tl.store(rows + example * crop + row, mean)
    tl.store(rows + (tl.num_programs(1) + example) * crop + row, tl.sum(distance * distance))


@triton.jit
def normalise_kernel(pixels, targets, rows, inputs, normalised, means, stds, crop, limit, SIZE: tl.constexpr):
    row, example = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x = tl.arange(0, SIZE)
    inside = x < crop
    row_means = tl.load(rows + example * crop + x, mask=inside, other=0.0)
    row_squares = tl.load(rows + (tl.num_programs(1) + example) * crop + x, mask=inside, other=0.0)
    mean = tl.sum(row_means) / crop
    distance = tl.where(inside, row_means - mean, 0.0)
    std = tl.sqrt((tl.sum(row_squares) + crop * tl.sum(distance * distance)) / (crop * crop))
    if row == 0:
        tl.store(means + example, mean)
        tl.store(stds + example, std)
    place = (example * crop + row) * crop + x
    bound = tl.cast(limit, tl.float32)
    value = (tl.load(pixels + place, mask=inside, other=0.0) - mean) / std
    tl.store(inputs + place, tl.minimum(tl.maximum(value, -bound), bound), mask=inside)
    value = (tl.load(targets + place, mask=inside, other=0.0) - mean) / std
    tl.store(normalised + place, tl.minimum(tl.maximum(value, -bound), bound), mask=inside)
