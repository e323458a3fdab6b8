"""AdEMAMix (Pagliardini et al., 2024, arXiv:2409.03137): Adam with a second, very slow momentum.

The slow average is not bias-corrected; its weight alpha and decay beta3 grow over `mix_warmup` updates (linearly, and
linearly in half-life). In a trial that is `mix_warmup_factor` of the step hint, by default all of it, as in the paper.
Weight decay is decoupled, multiplied by the scheduled learning rate, and hits every parameter.

Search space: AdamW points of the benchmark's target setting and the paper's betas 0.9, 0.999, 0.9999 with alpha 5 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from algoperf_torch.errors import HyperparameterError
from algoperf_torch.kernels.ademamix import ademamix_ as ademamix_kernel_
from algoperf_torch.optim.arithmetic import Scalar, bias_correction, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, OptimizerAlgorithm, require_fraction, require_non_negative
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.optim.fused import FusedUpdate
from algoperf_torch.optim.wrappers import split_own
from algoperf_torch.spec import Hyperparameters


def mixing_weight(alpha: float, step: Tensor, mix_warmup: int) -> Tensor:
    """The slow average's weight: linear from 0 to `alpha` over `mix_warmup` updates (a 0-d tensor)."""
    return (step / max(mix_warmup, 1)).clamp(max=1.0) * alpha if mix_warmup else torch.full_like(step, alpha)


def slow_weight(beta1: float, beta3: float, step: Tensor, mix_warmup: int) -> Tensor:
    """1 - the slow average's decay, which goes from `beta1` to `beta3` over `mix_warmup` updates, linear in the half-life."""
    if not mix_warmup or not 0 < beta1 < beta3:
        return torch.full_like(step, 1 - beta3)
    progress = (step / mix_warmup).clamp(max=1.0)
    start, end = math.log(beta1), math.log(beta3)
    return -torch.expm1(start * end / ((1 - progress) * end + progress * start))


def ademamix_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_slow: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: Scalar,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    mix_warmup: int,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one parameter in place; `step` is 1 in the first."""
    grad = grad.to(exp_avg.dtype)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_slow.lerp_(grad, slow_weight(beta1, beta3, step, mix_warmup))
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(eps)
    update = exp_avg / bias_correction(beta1, step)
    update.add_(exp_avg_slow * mixing_weight(alpha, step, mix_warmup)).div_(denominator)
    param.sub_(update.add_(param, alpha=weight_decay).mul_(lr))


class AdEMAMix(BaseOptimizer):
    """Adam with a fast and a slow momentum."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        mix_warmup: int = 0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "alpha": alpha,
            "mix_warmup": mix_warmup,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        names = ("lr", "alpha", "mix_warmup", "eps", "weight_decay")
        require_non_negative(**{name: group[name] for name in names})
        require_fraction(betas=group["betas"])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        return {name: zeros_for(param) for name in ("exp_avg", "exp_avg_slow", "exp_avg_sq")}

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2, beta3 = group["betas"]
        ademamix_(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_slow"],
            state["exp_avg_sq"],
            state["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            alpha=group["alpha"],
            mix_warmup=group["mix_warmup"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def update_fused(self, update: FusedUpdate) -> None:
        group = update.group
        beta1, beta2, beta3 = group["betas"]
        ademamix_kernel_.with_table(
            update.table(),
            update.params,
            update.grads,
            update.column("exp_avg"),
            update.column("exp_avg_slow"),
            update.column("exp_avg_sq"),
            update.column("step"),
            update.lr,
            update.grad_scale,
            beta1=beta1,
            beta2=beta2,
            beta3=beta3,
            alpha=group["alpha"],
            mix_warmup=group["mix_warmup"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


class AdEMAMixAlgorithm(OptimizerAlgorithm):
    """AdEMAMix whose slow momentum warms up over `mix_warmup_factor` of the step hint."""

    optimizer_class = AdEMAMix
    own: ClassVar[Mapping[str, float]] = {"mix_warmup_factor": 1.0}

    def __init__(self, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> None:
        own, rest = split_own(self.own, hyperparameters)
        self.mix_warmup = round(own["mix_warmup_factor"] * context.step_hint)
        super().__init__(model, rest, context)

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"mix_warmup": options.get("mix_warmup", self.mix_warmup)}

    @classmethod
    def check_hyperparameters(cls, hyperparameters: Hyperparameters) -> None:
        own, rest = split_own(cls.own, hyperparameters)
        if not own["mix_warmup_factor"] >= 0:
            raise HyperparameterError(f"Invalid mix_warmup_factor={own['mix_warmup_factor']}: must be >= 0.")
        super().check_hyperparameters(rest)
