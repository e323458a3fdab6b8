"""Cautious NAdamW (Liang et al., 2024, arXiv:2411.16085, algorithm 1, over NAdamW).

Coordinates whose update would go against their present gradient stand still; the others move further by the inverse of
their share in the parameter. Weight decay is decoupled, not masked, and hits every parameter.

Search space: that of NAdamW.
"""

from __future__ import annotations

from torch import Tensor

from algoperf_torch.optim.adamw import AdamW, fused_adam
from algoperf_torch.optim.arithmetic import Scalar, bias_correction
from algoperf_torch.optim.fused import FusedUpdate

SMALLEST_SHARE = 1e-3


def cautious_nadamw_(
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
    update = exp_avg.lerp(grad, 1 - beta1)
    mask = (update * grad > 0).to(update.dtype)
    update.mul_(mask).div_(mask.mean().clamp_(min=SMALLEST_SHARE))
    update.div_(bias_correction(beta1, step)).div_(denominator)
    param.sub_(update.add_(param, alpha=weight_decay).mul_(lr))


class CautiousNAdamW(AdamW):
    """NAdamW that never moves against the gradient; its options and state are those of AdamW."""

    rule = staticmethod(cautious_nadamw_)

    def update_fused(self, update: FusedUpdate) -> None:
        fused_adam(update, betas=update.group["betas"], eps=update.group["eps"], nesterov=True, cautious=True)
