"""Loss and gradient over the vocabularies of the Transformer and of the language model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from algoperf_torch.kernels.cross_entropy import reference
from benchmarks.gpu.case import SMALL, Case, compiled_reference, draw, num_bytes

SMOOTHING = 0.1
SIZES = {"wmt": (128 * 256, 32_000), "finewebedu_lm": (16 * 1024, 50_257)}
Inputs = tuple[Tensor, Tensor, Tensor]


def make(device: torch.device, small: int, rows: int, classes: int, dtype: torch.dtype) -> Inputs:
    if small:
        rows, classes = 4, SMALL + 1
    targets = torch.zeros(rows, dtype=torch.int64, device=device) + classes // 2
    return draw((rows, classes), device, dtype), targets, torch.ones(rows, device=device)


def fused(inputs: Inputs) -> Tensor:
    from algoperf_torch.kernels.cross_entropy.fused import cross_entropy, cross_entropy_backward

    logits, targets, weights = inputs
    _, lse = cross_entropy(logits, targets, weights, SMOOTHING)
    return cross_entropy_backward(weights, logits, targets, weights, lse, SMOOTHING)


def loss_and_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    _, lse = reference.cross_entropy(logits, targets, weights, SMOOTHING)
    return reference.cross_entropy_backward(weights, logits, targets, weights, lse, SMOOTHING)


def torch_loss(inputs: Inputs) -> object:
    logits, targets, weights = inputs
    leaf = logits.detach().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        losses = torch.nn.functional.cross_entropy(leaf, targets, reduction="none", label_smoothing=SMOOTHING)
        return torch.autograd.grad((losses * weights).sum(), leaf)

    return run


def cases() -> list[Case]:
    return [
        Case(
            name=f"cross_entropy/{name} {str(dtype).removeprefix('torch.')}",
            make=partial(make, rows=rows, classes=classes, dtype=dtype),
            fused=fused,
            peers={"compiled": compiled_reference(loss_and_gradient), "torch": torch_loss},
            bytes=lambda inputs: 3 * num_bytes(inputs[0]),
        )
        for name, (rows, classes) in SIZES.items()
        for dtype in (torch.float32, torch.bfloat16)
    ]
