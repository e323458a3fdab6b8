"""The metric of fastMRI over an evaluation batch."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.ssim import reference
from benchmarks.gpu.case import Case, compiled_reference, draw, num_bytes

Inputs = tuple[Tensor, ...]


def make(device: torch.device, small: int) -> Inputs:
    batch, side = (2, 24) if small else (256, 320)
    return *(draw((batch, side, side), device) for _ in range(2)), *(torch.ones(batch, device=device) for _ in range(3))


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.ssim.fused import ssim

    return ssim(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name="ssim/fastmri",
            make=make,
            fused=fused,
            peers={"compiled": compiled_reference(reference.ssim)},
            bytes=lambda inputs: num_bytes(*inputs[:2]),
        )
    ]
