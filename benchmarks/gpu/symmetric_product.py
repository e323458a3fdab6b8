"""The statistics of Shampoo and SOAP, and symmetric products, against a library's full product."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.case import SMALL, Case, draw, num_bytes


def make(device: torch.device, small: int, n: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    if small:
        n, k = min(n, SMALL), min(k, SMALL)
    batch = 2 if small else 24
    statistic = torch.zeros(batch, n, n, device=device, dtype=dtype)
    return statistic, draw((batch, n, k), device, dtype), torch.full((), 0.05, device=device)


def product(inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    from algoperf_torch.kernels.symmetric_product.fused import symmetric_product

    return symmetric_product(inputs[1])


def update(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    from algoperf_torch.kernels.symmetric_product.fused import symmetric_update_

    symmetric_update_(*inputs)


def cases() -> list[Case]:
    return [
        Case(
            name="symmetric_product/1024 x 4096 bfloat16",
            make=partial(make, n=1024, k=4096, dtype=torch.bfloat16),
            fused=product,
            peers={"torch matmul": lambda inputs: lambda: inputs[1] @ inputs[1].mT},
            bytes=lambda inputs: num_bytes(*inputs[:2]),
        ),
        Case(
            name="symmetric_product/1024 x 4096, statistics in float32",
            make=partial(make, n=1024, k=4096, dtype=torch.float32),
            fused=update,
            peers={
                "torch baddbmm": lambda inputs: (
                    lambda: torch.baddbmm(inputs[0], inputs[1], inputs[1].mT, beta=0.95, alpha=0.05, out=inputs[0])
                )
            },
            bytes=lambda inputs: 2 * num_bytes(inputs[0]) + num_bytes(inputs[1]),
        ),
    ]
