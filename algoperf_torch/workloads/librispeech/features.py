"""From audio to normalised log-mel features, and SpecAugment (Park et al., 2019, arXiv:1904.08779) on them.

Audio is float32 in the range of 16-bit integers at 16 kHz. A padding tensor holds 1 where a sample or frame is padded
and 0 where it is valid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.kernels.log_mel import log_mel
from algoperf_torch.workloads.librispeech.statistics import LOG_MEL_MEAN, LOG_MEL_STD

SAMPLE_RATE = 16_000
WINDOW = 400  # samples: 25 ms
FRAME = WINDOW + 1  # the last sample takes part in framing and padding, not in any value
HOP = 160  # samples: 10 ms
FFT_SIZE = 512
NUM_MELS = 80
MEL_EDGES_HZ = (125.0, 7600.0)
WIDEST_BIN_MASK = 27  # bins, exclusive


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


class LogMel(nn.Module):
    """Audio and paddings [batch, samples] to log-mel features [batch, frames, 80] and paddings [batch, frames].

    A frame is valid when any of its samples is. Padded frames are not zeroed: they hold the floor of the logarithm. Masks
    [batch, masks, 2] are (first, number) of the frames or bins that are set to 0, which is the training mean.
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

    def forward(
        self, audio: Tensor, paddings: Tensor, time_masks: Tensor | None = None, bin_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return log_mel(audio, paddings, self.window, self.mel, self.mean, self.std, time_masks, bin_masks)  # type: ignore[no-any-return]


class SpecAugment(nn.Module):
    """Random stretches of frames and of mel bins, to be masked.

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

    def forward(self, paddings: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(time masks, bin masks), int64 [batch, masks, 2], of audio with these paddings [batch, samples]."""
        if draws is None:
            draws = torch.rand(len(paddings), self.num_draws, device=paddings.device)
        samples = (1 - paddings).sum(dim=1, keepdim=True)  # [batch, 1]
        frames = torch.ceil(samples / HOP).clamp_max(num_frames(paddings.shape[1]))
        time_size, time_start, bin_size, bin_start = draws.split(self.num_masks, dim=1)
        longest = torch.trunc(0.05 * frames).clamp_min(1)
        bins = torch.full_like(frames, NUM_MELS)
        time_masks = _masks(frames, 0.05 * frames, longest, time_size, time_start)
        return time_masks, _masks(bins, torch.full_like(bins, WIDEST_BIN_MASK), bins, bin_size, bin_start)


def _masks(valid: Tensor, scale: Tensor, widest: Tensor, size: Tensor, start: Tensor) -> Tensor:
    """int64 [batch, masks, 2]: (first, number) of min(scale x size, widest) of the `valid` positions.

    `valid`, `scale`, `widest` are [batch, 1]; `size` and `start` are uniform numbers [batch, masks].
    """
    width = torch.minimum(torch.trunc(scale * size), widest)
    return torch.stack([torch.trunc(start * (valid - width + 1)), width], dim=-1).long()
