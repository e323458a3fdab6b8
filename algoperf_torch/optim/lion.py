"""Lion (Chen et al., 2023, arXiv:2302.06675): the sign of an interpolated momentum.

Weight decay is decoupled, multiplied by the scheduled learning rate, and hits every parameter.

Search space: the point of AlgoPerf's Lion submission (learning rate 2e-4, betas 0.95 and 0.98, weight decay 0.5) and the
paper's defaults (betas 0.9 and 0.99) with learning rates a tenth to a third of AdamW's and decays as much larger.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from algoperf_torch.kernels.lion import lion_ as lion_kernel_
from algoperf_torch.optim.arithmetic import Scalar, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative
from algoperf_torch.optim.fused import FusedUpdate


def lion_(
    param: Tensor, grad: Tensor, exp_avg: Tensor, *, lr: Scalar, beta1: float, beta2: float, weight_decay: float
) -> None:
    """One update of one parameter in place."""
    grad = grad.to(exp_avg.dtype)
    update = exp_avg.lerp(grad, 1 - beta1).sign_()
    param.sub_(update.add_(param, alpha=weight_decay).mul_(lr))
    exp_avg.lerp_(grad, 1 - beta2)


class Lion(BaseOptimizer):
    """Evolved sign momentum."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], weight_decay=group["weight_decay"])
        require_fraction(betas=group["betas"])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        return {"exp_avg": zeros_for(param)}

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        lion_(
            param,
            grad,
            state["exp_avg"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
        )

    def update_fused(self, update: FusedUpdate) -> None:
        beta1, beta2 = update.group["betas"]
        lion_kernel_.with_table(
            update.table(),
            update.params,
            update.grads,
            update.column("exp_avg"),
            update.lr,
            update.grad_scale,
            beta1=beta1,
            beta2=beta2,
            weight_decay=update.group["weight_decay"],
        )
