"""A batch of ImageNet's training images, decoded, to crops of 224 pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.crop_resize import reference
from benchmarks.gpu.case import Case

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Inputs = tuple[Any, ...]


def make(device: torch.device, small: int) -> Inputs:
    batch, height, width, size = (3, 20, 24, 8) if small else (256, 400, 480, 224)
    number = torch.arange(batch)
    images = torch.stack([number * height * width * 3, number * 0 + height, number * 0 + width], dim=1)
    boxes = torch.tensor([[height // 8, width // 8, height // 2, width // 2]]).repeat(batch, 1)
    pixels = torch.zeros(batch * height * width * 3, dtype=torch.uint8, device=device)
    return pixels, images.to(device), boxes.to(device), (number % 2 == 0).to(device), size, MEAN, STD


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.crop_resize.fused import crop_resize

    return crop_resize(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name="crop_resize/imagenet",
            make=make,
            fused=fused,
            # The reference takes the images one by one: sizes differ, so there is nothing for a compiler to join.
            peers={"reference": lambda inputs: lambda: reference.crop_resize(*inputs)},
            bytes=lambda inputs: len(inputs[1]) * 3 * (inputs[4] ** 2 * 4 + 200 * 240),
        )
    ]
