"""A batch of fastMRI slices."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.kspace import reference
from benchmarks.gpu.case import Case, draw, num_bytes

Inputs = tuple[Tensor, ...]


def make(device: torch.device, small: int) -> Inputs:
    batch, width, crop = (2, 40, 32) if small else (32, 368, 320)
    kept = (torch.arange(width, device=device) % 4 == 0).repeat(batch, 1)
    return (
        torch.randn(batch, width, crop, dtype=torch.complex64, device=device),
        kept,
        draw((batch, crop, crop), device),
    )


def fused(inputs: Inputs) -> object:
    from algoperf_torch.kernels.kspace.fused import reconstruct

    return reconstruct(*inputs)


def least_bytes(inputs: Inputs) -> int:
    """The kept quarter of the columns; spectra written, transformed in place, read; magnitudes; both images."""
    measured, _, targets = inputs
    return num_bytes(measured) // 4 + 4 * num_bytes(measured) + 5 * num_bytes(targets)


def cases() -> list[Case]:
    return [
        Case(
            name="kspace/fastmri",
            make=make,
            fused=fused,
            # Inductor has no code for complex numbers: the reference is not compiled.
            peers={"reference": lambda inputs: lambda: reference.reconstruct(*inputs)},
            bytes=least_bytes,
        )
    ]
