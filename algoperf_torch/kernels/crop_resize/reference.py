"""Crops of decoded images, resized, flipped and normalised, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def crop_resize(
    pixels: Tensor, images: Tensor, boxes: Tensor, flips: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """float32 [batch, 3, size, size] in channels-last memory, of a ragged batch of decoded images.

    `pixels` uint8 [bytes] holds the images one behind the other, each [height, width, 3]; `images` int64 [batch, 3] are
    (first byte, height, width), `boxes` int64 [batch, 4] are (top, left, height, width) within the image, `flips` bool
    [batch]. Crops are resized bilinearly, with the filter widened where they shrink (as Pillow and torchvision do), mirrored
    where asked, divided by 255, and normalised by channel.
    """
    shift, scale = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    result = torch.empty(len(images), 3, size, size, device=pixels.device).contiguous(memory_format=torch.channels_last)
    for i, ((start, height, width), (top, left, rows, cols)) in enumerate(
        zip(images.tolist(), boxes.tolist(), strict=True)
    ):
        image = pixels[start : start + height * width * 3].view(height, width, 3).permute(2, 0, 1)
        crop = image[None, :, top : top + rows, left : left + cols].float()
        resized = functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        result[i] = ((resized.flip(2) if flips[i] else resized) / 255 - shift) / scale
    return result
