"""The pairwise products of DLRM, and their gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.dot_interaction import reference
from benchmarks.gpu.case import Case, compiled_reference, draw, num_bytes

Inputs = tuple[Tensor, Tensor]


def make(device: torch.device, small: int) -> Inputs:
    batch, n, width = (4, 27, 32) if small else (262_144, 27, 128)
    return draw((batch, n * (n + 1) // 2), device), draw((batch, n, width), device)


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.dot_interaction.fused import dot_interaction

    return dot_interaction(inputs[1])


def gradient(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.dot_interaction.fused import dot_interaction_backward

    return dot_interaction_backward(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name="dot_interaction/criteo1tb",
            make=make,
            fused=fused,
            peers={"compiled": lambda inputs: compiled_reference(reference.dot_interaction)(inputs[1:])},
            bytes=lambda inputs: num_bytes(*inputs),
        ),
        Case(
            name="dot_interaction/criteo1tb, gradient",
            make=make,
            fused=gradient,
            peers={"compiled": compiled_reference(reference.dot_interaction_backward)},
            bytes=lambda inputs: num_bytes(inputs[0]) + 2 * num_bytes(inputs[1]),
        ),
    ]
