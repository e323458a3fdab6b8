"""Newton-Schulz iterations over a batch of square matrices, and the symmetric products in it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from algoperf_torch.kernels.newton_schulz import reference
from benchmarks.gpu.case import SMALL, Case, compiled_reference, draw, num_bytes

SHAPES = {
    "1024 x 1024": (48, 1024, 1024),
    "1024 x 4096": (12, 1024, 4096),
    "8192 x 1024": (12, 8192, 1024),
    "384 x 384": (49, 384, 384),
}


def make(device: torch.device, small: int, shape: tuple[int, int, int]) -> tuple[Tensor]:
    if small:
        shape = (2, min(SMALL, shape[1]), min(2 * SMALL, shape[2]))
    return (draw(shape, device, torch.bfloat16),)


def fused(inputs: tuple[Tensor]) -> Tensor:
    from algoperf_torch.kernels.newton_schulz.fused import newton_schulz

    return newton_schulz(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name=f"newton_schulz/{name}",
            make=partial(make, shape=shape),
            fused=fused,
            peers={"compiled": compiled_reference(reference.newton_schulz)},
            bytes=lambda inputs: 2 * num_bytes(*inputs),
        )
        for name, shape in SHAPES.items()
    ]
