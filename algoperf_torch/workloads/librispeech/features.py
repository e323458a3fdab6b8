"""From audio to normalised log-mel features, and SpecAugment (Park et al., 2019, arXiv:1904.08779) on them.

Audio is float32 in the range of 16-bit integers at 16 kHz. A padding tensor holds 1 where a sample or frame is padded
and 0 where it is valid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.workloads.librispeech.statistics import LOG_MEL_MEAN, LOG_MEL_STD

SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
FRAME = WINDOW + 1  # the last sample takes part in framing and padding, not in any value
HOP = 160  # samples: 10 ms
FFT_SIZE = 512
NUM_MELS = 80
MEL_EDGES_HZ = (125.0, 7600.0)
LOG_FLOOR = 1e-5
PRE_EMPHASIS = 0.97


def num_frames(num_samples: int) -> int:
    return (num_samples - FRAME) // HOP + 1


def mel_matrix() -> Tensor:
    """float32 [257, 80]: triangles of height 1 whose slopes are linear in mel; the row of frequency 0 is zero."""
    lowest, highest = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in MEL_EDGES_HZ)
    edges = torch.linspace(lowest, highest, NUM_MELS + 2)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    bins = 1127.0 * torch.log(1.0 + torch.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1) / 700.0)[1:, None]
    slopes = torch.minimum((bins - lower) / (center - lower), (upper - bins) / (upper - center))
    return functional.pad(slopes.clamp_min(0), (0, 0, 1, 0))


@torch.library.custom_op("algoperf::power_spectrum", mutates_args=())
def power_spectrum(frames: Tensor) -> Tensor:
    """Squared magnitudes [..., 257] of the Fourier transform of real frames [..., 400].

    An operator of its own because the compiler has no code for complex numbers. Audio needs no gradient.
    """
    return torch.view_as_real(torch.fft.rfft(frames, n=FFT_SIZE)).square().sum(-1)


@power_spectrum.register_fake
def _(frames: Tensor) -> Tensor:
    return frames.new_empty(*frames.shape[:-1], FFT_SIZE // 2 + 1)


class LogMel(nn.Module):
    """Audio and paddings [batch, samples] to log-mel features [batch, frames, 80] and paddings [batch, frames].

    A frame is valid when any of its samples is. Padded frames are not zeroed: they hold the floor of the logarithm.
    """

    window: Tensor
    mel: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=True), persistent=False)
        self.register_buffer("mel", mel_matrix(), persistent=False)
        self.register_buffer("mean", torch.tensor(LOG_MEL_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(LOG_MEL_STD), persistent=False)

    def forward(self, audio: Tensor, paddings: Tensor) -> tuple[Tensor, Tensor]:
        x = audio * (1 - paddings) * 2.0**-15
        # Within every window the first sample would be emphasised differently, but the window is zero there.
        x = functional.pad(x[:, 1:] - PRE_EMPHASIS * x[:, :-1], (1, 0))
        frames = x.unfold(1, WINDOW, HOP)[:, : num_frames(audio.shape[1])] * self.window
        energies = power_spectrum(frames) @ self.mel
        features = (torch.log(energies.clamp_min(LOG_FLOOR)) - self.mean) / self.std
        return features, -functional.max_pool1d(-paddings, FRAME, HOP)


class SpecAugment(nn.Module):
    """Sets random stretches of frames and of mel bins to zero, which is the training mean.

    A time mask covers 0 to 5 % of an example's valid frames, a frequency mask 0 to 26 bins. The randomness is an
    argument: uniform numbers [batch, `num_draws`], for each example the sizes and then the starts of its time masks,
    likewise of its frequency masks; they are drawn from the global generator where none are given.
    """

    def __init__(self, num_time_masks: int, num_frequency_masks: int) -> None:
        super().__init__()
        self.num_masks = (num_time_masks, num_time_masks, num_frequency_masks, num_frequency_masks)

    @property
    def num_draws(self) -> int:
        return sum(self.num_masks)

    def forward(self, features: Tensor, paddings: Tensor, draws: Tensor | None = None) -> Tensor:
        if draws is None:
            draws = torch.rand(len(features), self.num_draws, device=features.device)
        lengths = (1 - paddings).sum(dim=1, keepdim=True)  # [batch, 1], in frames
        time_size, time_start, bin_size, bin_start = draws.split(self.num_masks, dim=1)
        widest = torch.trunc(0.05 * lengths).clamp_min(1)
        time_masked = _masked(features.shape[1], lengths, 0.05 * lengths, widest, time_size, time_start)
        bins = torch.full_like(lengths, features.shape[2])
        bin_masked = _masked(features.shape[2], bins, torch.full_like(bins, 27), bins, bin_size, bin_start)
        return features.masked_fill(time_masked[:, :, None] | bin_masked[:, None, :], 0.0)


def _masked(length: int, valid: Tensor, scale: Tensor, widest: Tensor, size: Tensor, start: Tensor) -> Tensor:
    """Boolean [batch, length]: the union of masks of min(scale x size, widest) positions within the valid ones.

    `valid`, `scale`, `widest` are [batch, 1]; `size` and `start` are uniform numbers [batch, masks].
    """
    width = torch.minimum(torch.trunc(scale * size), widest)
    first = torch.trunc(start * (valid - width + 1))
    position = torch.arange(length, device=size.device, dtype=size.dtype)
    inside = (position >= first[..., None]) & (position < (first + width)[..., None])  # [batch, masks, length]
    return inside.any(dim=1)
