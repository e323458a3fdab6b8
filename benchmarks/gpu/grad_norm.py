"""The norm of the Transformer's gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algoperf_torch.kernels.launch import TensorTable
from benchmarks.gpu.case import Case, draw, num_bytes, shrunk, workload_shapes


@dataclass
class Gradients:
    grads: tuple[Tensor, ...]
    table: TensorTable


def make(device: torch.device, small: int) -> Gradients:
    shapes = shrunk(workload_shapes()["wmt"], small=small)
    return Gradients(tuple(draw(shape, device) for shape in shapes), TensorTable(persistent=True))


def fused(inputs: Gradients) -> object:
    from algoperf_torch.kernels.grad_norm.fused import clip_coefficient

    return clip_coefficient(inputs.grads, 1.0, table=inputs.table)


def cases() -> list[Case]:
    return [
        Case(
            name="grad_norm/wmt",
            make=make,
            fused=fused,
            peers={"torch get_total_norm": lambda inputs: lambda: torch.nn.utils.get_total_norm(inputs.grads)},
            bytes=lambda inputs: num_bytes(*inputs.grads),
            parameters=lambda inputs: sum(grad.numel() for grad in inputs.grads),
        )
    ]
