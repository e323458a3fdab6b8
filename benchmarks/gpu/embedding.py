"""Look-ups of Criteo in a table of four parts, and their dense gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.embedding import reference
from benchmarks.gpu.case import Case, compiled_reference, draw, num_bytes

Inputs = tuple[Tensor, list[Tensor]]


def make(device: torch.device, small: int) -> Inputs:
    rows, batch, width = (32, 8, 16) if small else (1_048_576, 262_144, 128)
    ids = (torch.rand(batch, 26, device=device) ** 4 * 4 * rows).long()  # a few rows are asked for often
    return ids, [draw((rows, width), device) for _ in range(4)]


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.embedding.fused import gather_rows

    return gather_rows(*inputs)


def gradient(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.segment_sum.fused import segment_sum

    ids, parts = inputs
    ids = ids.reshape(-1)
    grad = torch.empty(len(ids), parts[0].shape[1], device=ids.device)
    return segment_sum(grad, ids, sum(len(part) for part in parts), ids.argsort(stable=True))


def torch_gradient(inputs: Inputs) -> object:
    ids, parts = inputs
    ids = ids.reshape(-1)
    grad = torch.empty(len(ids), parts[0].shape[1], device=ids.device)
    rows = sum(len(part) for part in parts)
    return lambda: torch.ops.aten.embedding_dense_backward(grad, ids, rows, -1, False)


def row_bytes(inputs: Inputs) -> int:
    ids, parts = inputs
    return ids.numel() * parts[0].shape[1] * parts[0].itemsize


def cases() -> list[Case]:
    return [
        Case(
            name="embedding/criteo1tb",
            make=make,
            fused=fused,
            peers={"compiled": compiled_reference(reference.gather_rows)},
            bytes=lambda inputs: num_bytes(inputs[0]) + 2 * row_bytes(inputs),
        ),
        Case(
            name="embedding/criteo1tb, gradient",
            make=make,
            fused=gradient,
            peers={"torch embedding_dense_backward": torch_gradient},
            bytes=lambda inputs: num_bytes(inputs[0], *inputs[1]) + row_bytes(inputs),
        ),
    ]
