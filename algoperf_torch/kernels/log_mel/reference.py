"""Normalised log-mel features of audio with SpecAugment's masks, in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

HOP = 160  # samples between frames
FFT_SIZE = 512
FLOOR = 1e-5  # of the energies
PRE_EMPHASIS = 0.97
SCALE = 2.0**-15  # 16-bit samples to [-1, 1)


def log_mel(
    audio: Tensor,
    paddings: Tensor,
    window: Tensor,
    mel: Tensor,
    mean: Tensor,
    std: Tensor,
    time_masks: Tensor | None = None,
    bin_masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Features [batch, frames, bins] and paddings [batch, frames] of audio and paddings [batch, samples].

    Frame f covers the samples 160 f to 160 f + window + 1; it is valid where any of them is. Padded samples count as zero;
    then x_i - 0.97 x_(i-1), `window` [n], whose first entry must be 0, the power spectrum of 512 points, `mel` [257, bins],
    the logarithm of at least 1e-5, and (value - mean) / std. Masks [batch, masks, 2] are (first, number) of frames or bins
    that become 0.
    """
    n = len(window)
    num_frames = (audio.shape[1] - n - 1) // HOP + 1
    x = audio * (1 - paddings)
    x = functional.pad(torch.sub(x[:, 1:], x[:, :-1], alpha=PRE_EMPHASIS), (1, FFT_SIZE - n))
    # The scale is a power of two: exact wherever it is multiplied. Zeros behind the window fill a frame to the transform.
    frames = x.unfold(1, FFT_SIZE, HOP)[:, :num_frames] * functional.pad(window * SCALE, (0, FFT_SIZE - n))
    squares = torch.view_as_real(torch.fft.rfft(frames)).flatten(-2).square_()
    energies = squares @ mel.repeat_interleave(2, dim=0)  # real and imaginary parts have the same weight
    features = energies.clamp_(min=FLOOR).log_().sub_(mean).div_(std)
    for masks, dim in ((time_masks, 1), (bin_masks, 2)):
        if masks is not None:
            place = torch.arange(features.shape[dim], device=features.device)
            first, number = masks[..., 0, None], masks[..., 1, None]
            masked = ((place >= first) & (place < first + number)).any(dim=1)
            features = features.masked_fill(masked[:, :, None] if dim == 1 else masked[:, None, :], 0.0)
    return features, paddings.unfold(1, n + 1, HOP).amin(dim=-1)
