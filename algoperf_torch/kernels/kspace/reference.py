"""Images from masked k-space columns, normalised, in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruct(
    measured: Tensor, kept: Tensor, targets: Tensor, limit: float = 6.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(inputs, targets, mean, std) of slices; images are [batch, crop, crop], numbers [batch].

    `measured` complex [batch, width, crop] holds, for every measured column, the inverse transform along the height, cropped;
    columns are in centred order, and `kept` bool [batch, width] says which are used. Inputs are the magnitudes of the
    centred orthonormal inverse transform over the columns, cropped to the middle; both images are normalised by the inputs'
    mean and population standard deviation and clipped to `limit`.
    """
    width, crop = measured.shape[1:]
    spectrum = torch.fft.ifftshift(measured * kept[:, :, None], dim=1)
    image = torch.fft.fftshift(torch.fft.ifft(spectrum, dim=1, norm="ortho"), dim=1)
    first = (width - crop) // 2
    pixels = image[:, first : first + crop].abs().mT
    mean = pixels.mean(dim=(1, 2))
    std = (pixels - mean[:, None, None]).square().mean(dim=(1, 2)).sqrt()
    inputs, normalised = (
        ((x - mean[:, None, None]) / std[:, None, None]).clamp(-limit, limit) for x in (pixels, targets)
    )
    return inputs.contiguous(), normalised, mean, std
