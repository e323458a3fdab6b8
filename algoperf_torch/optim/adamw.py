"""AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101, algorithm 2).

Weight decay is decoupled, multiplied by the scheduled learning rate, and hits every parameter, as in the AlgoPerf baseline.

Search space: the five points of `nadamw.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor

from algoperf_torch.kernels.adam import adam_
from algoperf_torch.optim.arithmetic import Scalar, bias_correction, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative
from algoperf_torch.optim.fused import FusedUpdate


def adamw_(
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
    """One update of one parameter in place; `step` is 1 in the first. All arithmetic is in the dtype of the averages."""
    grad = grad.to(exp_avg.dtype)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(eps)
    update = (exp_avg / bias_correction(beta1, step)).div_(denominator)
    param.sub_(update.add_(param, alpha=weight_decay).mul_(lr))


def fused_adam(
    update: FusedUpdate,
    *,
    betas: tuple[float, float],
    eps: float,
    nesterov: bool = False,
    cautious: bool = False,
) -> None:
    """AdamW, NAdamW and their cautious forms over all parameters of an update."""
    beta1, beta2 = betas
    adam_.with_table(
        update.table("adam"),
        update.params,
        update.grads,
        update.column("exp_avg"),
        update.column("exp_avg_sq"),
        (),
        update.column("step"),
        update.lr,
        update.grad_scale,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=update.group["weight_decay"],
        nesterov=nesterov,
        cautious=cautious,
    )


class AdamW(BaseOptimizer):
    """Adam with decoupled weight decay; agrees with `torch.optim.AdamW`. Relatives with the same state set `rule`."""

    rule: ClassVar[Callable[..., None]] = staticmethod(adamw_)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], eps=group["eps"], weight_decay=group["weight_decay"])
        require_fraction(betas=group["betas"])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        return {"exp_avg": zeros_for(param), "exp_avg_sq": zeros_for(param)}

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        self.rule(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def update_fused(self, update: FusedUpdate) -> None:
        fused_adam(update, betas=update.group["betas"], eps=update.group["eps"])
