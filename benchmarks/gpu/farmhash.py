"""Ids of a batch of Criteo's categorical fields."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.farmhash import reference
from benchmarks.gpu.case import Case, compiled_reference, num_bytes

Inputs = tuple[Tensor, Tensor]


def make(device: torch.device, small: int) -> Inputs:
    rows = 16 if small else 262_144
    words = torch.arange(rows * 26, device=device).view(rows, 26) * 0x123456789ABCDE
    return words, torch.arange(26, device=device) * 1_000_003 + 3


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.farmhash.fused import category_ids

    return category_ids(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name="farmhash/criteo1tb",
            make=make,
            fused=fused,
            peers={"compiled": compiled_reference(reference.category_ids)},
            bytes=lambda inputs: 2 * num_bytes(inputs[0]),
        )
    ]
