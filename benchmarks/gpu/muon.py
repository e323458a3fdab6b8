"""A whole update of Muon over the matrices of the Transformer, ViT and the language model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from algoperf_torch.kernels.launch import TensorTable
from benchmarks.gpu.case import Case, draw, num_bytes, shrunk, workload_shapes


@dataclass
class Matrices:
    """Parameters and gradients; directions are slices of one bfloat16 batch for each shape."""

    params: tuple[Tensor, ...]
    grads: tuple[Tensor, ...]
    momenta: tuple[Tensor, ...]
    batches: list[Tensor]
    directions: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    lr: Tensor
    tables: tuple[TensorTable, TensorTable]


def make(device: torch.device, small: int, workload: str) -> Matrices:
    matrices = [shape for shape in workload_shapes()[workload] if len(shape) == 2 and max(shape) < 30_000]
    by_shape: dict[tuple[int, ...], int] = defaultdict(int)
    for shape in shrunk(matrices, small=small):
        by_shape[shape] += 1
    shapes = [shape for shape, count in by_shape.items() for _ in range(count)]
    params, grads, momenta = (tuple(draw(shape, device) for shape in shapes) for _ in range(3))
    batches = [torch.empty(count, *shape, device=device, dtype=torch.bfloat16) for shape, count in by_shape.items()]
    return Matrices(
        params,
        grads,
        momenta,
        batches,
        tuple(matrix for batch in batches for matrix in batch.unbind()),
        tuple(torch.full((), max(1.0, shape[0] / shape[1]) ** 0.5, device=device) for shape in shapes),
        torch.full((), 0.02, device=device),
        (TensorTable(persistent=True), TensorTable()),
    )


def fused(inputs: Matrices) -> None:
    from algoperf_torch.kernels.muon.fused import muon_apply_, muon_momentum_
    from algoperf_torch.kernels.newton_schulz.fused import newton_schulz

    muon_momentum_(inputs.momenta, inputs.grads, inputs.directions, momentum=0.95, table=inputs.tables[0])
    updates = tuple(matrix for batch in inputs.batches for matrix in newton_schulz(batch).unbind())
    muon_apply_(inputs.params, updates, inputs.factors, inputs.lr, weight_decay=0.1, table=inputs.tables[1])


def torch_muon(inputs: Matrices) -> object:
    leaves = [torch.nn.Parameter(param) for param in inputs.params]
    for leaf, grad in zip(leaves, inputs.grads, strict=True):
        leaf.grad = grad
    return torch.optim.Muon(leaves, lr=0.02, weight_decay=0.1).step


def cases() -> list[Case]:
    return [
        Case(
            name=f"muon/{workload}",
            make=partial(make, workload=workload),
            fused=fused,
            peers={"torch.optim.Muon": torch_muon},
            bytes=lambda inputs: 2 * num_bytes(*inputs.params, *inputs.momenta) + num_bytes(*inputs.grads),
            parameters=lambda inputs: sum(param.numel() for param in inputs.params),
            goal="2 times",
        )
        for workload in ("wmt", "imagenet_vit", "finewebedu_lm")
    ]
