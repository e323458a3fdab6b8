"""Prodigy (Mishchenko and Defazio, 2023, arXiv:2306.06101): Adam that estimates its own learning rate.

d is a growing lower bound of the distance from the initial weights x0 to the solution, from <g, x0 - x> and the weighted
sum s of all gradients; the step is lr d times Adam's, without bias correction. Each parameter group has its own d; the
parameters of a trial are one group. Weight decay is decoupled, multiplied by lr d, and hits every parameter.

Search space: lr 1 as the authors advise, `d_coef` 0.5 to 2 (the one that they advise to change), betas and weight decays of
the benchmark's target setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from algoperf_torch.optim.arithmetic import Scalar, state_dtype, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative, require_positive


class Prodigy(BaseOptimizer):
    """Adam with an estimate of the distance to the solution."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        d_coef: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d0": d0, "d_coef": d_coef}
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], eps=group["eps"], weight_decay=group["weight_decay"])
        require_fraction(betas=group["betas"])
        require_positive(d0=group["d0"], d_coef=group["d_coef"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        first = group["params"][0]
        group["d"] = torch.full((), group["d0"], dtype=state_dtype(first), device=first.device)
        group["numerator"] = torch.zeros_like(group["d"])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        averages = {name: zeros_for(param) for name in ("exp_avg", "exp_avg_sq", "sum")}
        return {**averages, "x0": param.detach().to(state_dtype(param), copy=True)}

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        beta1, beta2 = group["betas"]
        beta3, d, lr = math.sqrt(beta2), group["d"], group["lr"]
        weight = (1 - beta3) * lr * d.square()
        numerator, denominator = torch.zeros_like(d), torch.zeros_like(d)
        for param, grad, state in zip(params, grads, states, strict=True):
            grad = grad.to(state["x0"].dtype)
            numerator += (grad * (state["x0"] - param)).sum()
            scaled = grad * d
            state["exp_avg"].lerp_(scaled, 1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
            denominator += state["sum"].mul_(beta3).add_(grad * weight).abs().sum()
            update = state["exp_avg"] / state["exp_avg_sq"].sqrt().add_(d * group["eps"])
            param.sub_(update.add_(param, alpha=group["weight_decay"]).mul_(lr * d))
        group["numerator"].mul_(beta3).add_(numerator * weight)
        estimate = group["d_coef"] * group["numerator"] / denominator
        d.copy_(torch.where(estimate > d, estimate, d))  # also where 0 / 0 is not a number
