"""LAMB (You et al., 2020, arXiv:1904.00962).

Every parameter moves by lr times its own norm along Adam's direction; where one of the norms is zero, by lr times Adam's
update. Weight decay is part of the direction and hits every parameter; so does the trust ratio, as in AlgoPerf's baseline.

Search space: learning rates of the paper's ImageNet and BERT runs with the weight decays and betas there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.lamb import lamb_ as lamb_kernel_
from algoperf_torch.optim.adamw import AdamW
from algoperf_torch.optim.arithmetic import Scalar, bias_correction
from algoperf_torch.optim.fused import FusedUpdate


def lamb_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one parameter in place; `step` is 1 in the first."""
    grad = grad.to(exp_avg.dtype)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(eps)
    update = (exp_avg / bias_correction(beta1, step)).div_(denominator).add_(param, alpha=weight_decay)
    size, length = torch.linalg.vector_norm(param.to(update.dtype)), torch.linalg.vector_norm(update)
    ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)  # NaN and inf of 0 / 0 are not chosen
    param.sub_(update.mul_(ratio * lr))


class LAMB(AdamW):
    """Layer-wise adaptive moments; its options and state are those of AdamW."""

    rule = staticmethod(lamb_)

    def update_fused(self, update: FusedUpdate) -> None:
        beta1, beta2 = update.group["betas"]
        lamb_kernel_.with_table(
            update.table(),
            update.params,
            update.grads,
            update.column("exp_avg"),
            update.column("exp_avg_sq"),
            update.column("step"),
            update.lr,
            update.grad_scale,
            beta1=beta1,
            beta2=beta2,
            eps=update.group["eps"],
            weight_decay=update.group["weight_decay"],
        )
