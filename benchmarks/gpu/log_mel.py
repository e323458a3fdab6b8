"""Features of a batch of 20-second utterances, with SpecAugment."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.log_mel import reference
from benchmarks.gpu.case import Case, draw, num_bytes

Inputs = tuple[Tensor, ...]


def make(device: torch.device, small: int) -> Inputs:
    batch, samples = (2, 2_000) if small else (64, 320_000)
    frames = (samples - 401) // 160 + 1
    masks = [
        torch.tensor([[first, 5] for first in range(0, limit, limit // count)][:count]).repeat(batch, 1, 1).to(device)
        for limit, count in ((frames, 10), (80, 2))
    ]
    mel = torch.rand(257, 80, device=device)
    constants = (
        torch.hann_window(400, device=device),
        mel,
        torch.zeros(80, device=device),
        torch.ones(80, device=device),
    )
    return draw((batch, samples), device), torch.zeros(batch, samples, device=device), *constants, *masks


def fused(inputs: Inputs) -> object:
    from algoperf_torch.kernels.log_mel.fused import log_mel

    return log_mel(*inputs)


def least_bytes(inputs: Inputs) -> int:
    """Audio and paddings; frames of 512 samples written and read; spectra likewise; features written."""
    batch, samples = inputs[0].shape
    frames = batch * ((samples - 401) // 160 + 1)
    return num_bytes(*inputs[:2]) + frames * 4 * (2 * 512 + 2 * 2 * 257 + 80 + 1)


def cases() -> list[Case]:
    return [
        Case(
            name="log_mel/librispeech",
            make=make,
            fused=fused,
            # Inductor has no code for complex numbers: the reference is not compiled.
            peers={"reference": lambda inputs: lambda: reference.log_mel(*inputs)},
            bytes=least_bytes,
        )
    ]
