"""Log-mel features of audio, with SpecAugment's masks in the same pass."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.log_mel import reference
from algoperf_torch.kernels.log_mel.reference import HOP
from algoperf_torch.kernels.registry import runs_fused

__all__ = ["log_mel"]


@torch.library.custom_op("algoperf::log_mel", mutates_args=())
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
    """Features [batch, frames, bins] and paddings [batch, frames] of audio and paddings [batch, samples]; see `reference`.

    Not differentiable: audio needs no gradient.
    """
    if runs_fused("log_mel", audio.device):
        from algoperf_torch.kernels.log_mel import fused

        return fused.log_mel(
            audio.contiguous(), paddings.contiguous(), window, mel.contiguous(), mean, std, time_masks, bin_masks
        )
    return reference.log_mel(audio, paddings, window, mel, mean, std, time_masks, bin_masks)


@log_mel.register_fake
def _(
    audio: Tensor,
    paddings: Tensor,  # noqa: ARG001
    window: Tensor,
    mel: Tensor,
    mean: Tensor,  # noqa: ARG001
    std: Tensor,  # noqa: ARG001
    time_masks: Tensor | None = None,  # noqa: ARG001
    bin_masks: Tensor | None = None,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    frames = (audio.shape[1] - len(window) - 1) // HOP + 1
    return audio.new_empty(len(audio), frames, mel.shape[1]), audio.new_empty(len(audio), frames)
