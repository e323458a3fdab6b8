"""Sums of messages by receiver, and by sender, in a batch of 512 molecules."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from algoperf_torch.kernels.segment_sum import reference
from benchmarks.gpu.case import Case, compiled_reference, draw, num_bytes

EDGES, NODES, WIDTH = 28_672, 13_313, 256
Inputs = tuple[Tensor, Tensor, int, Tensor | None]


def make(device: torch.device, small: int, ordered: bool) -> Inputs:
    edges, nodes, width = (200, 60, 32) if small else (EDGES, NODES, WIDTH)
    segments = torch.arange(edges, device=device) * nodes // edges
    order = None
    if ordered:
        segments = segments.flip(0)
        order = torch.arange(edges, device=device).flip(0)
    return draw((edges, width), device), segments, nodes, order


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.segment_sum.fused import segment_sum

    return segment_sum(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name=f"segment_sum/{name}",
            make=partial(make, ordered=ordered),
            fused=fused,
            peers={"compiled": compiled_reference(reference.segment_sum)},
            bytes=lambda inputs: num_bytes(inputs[0], inputs[1]) + inputs[2] * inputs[0].shape[1] * 4,
        )
        for name, ordered in (("by receiver", False), ("by sender", True))
    ]
