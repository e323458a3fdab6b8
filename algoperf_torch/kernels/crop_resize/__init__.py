"""From decoded images of any size to a normalised batch in channels-last memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.crop_resize import reference
from algoperf_torch.kernels.registry import runs_fused


@torch.library.custom_op("algoperf::crop_resize", mutates_args=())
def crop_resize(
    pixels: Tensor, images: Tensor, boxes: Tensor, flips: Tensor, size: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """float32 [batch, 3, size, size] in channels-last memory, of a ragged batch of decoded uint8 images; see `reference`."""
    if runs_fused("crop_resize", pixels.device):
        from algoperf_torch.kernels.crop_resize import fused

        return fused.crop_resize(pixels, images.contiguous(), boxes.contiguous(), flips.contiguous(), size, mean, std)
    return reference.crop_resize(pixels, images, boxes, flips, size, mean, std)


@crop_resize.register_fake
def _(
    pixels: Tensor,
    images: Tensor,
    boxes: Tensor,  # noqa: ARG001
    flips: Tensor,  # noqa: ARG001
    size: int,
    mean: Sequence[float],  # noqa: ARG001
    std: Sequence[float],  # noqa: ARG001
) -> Tensor:
    result = pixels.new_empty(len(images), 3, size, size, dtype=torch.float32)
    return result.contiguous(memory_format=torch.channels_last)
