"""SOAP (Vyas et al., 2024, arXiv:2409.11321): Adam in the eigenbasis of Shampoo's preconditioner.

A matrix G (higher-order tensors as [first dimension, rest]) has running means of G G^T and G^T G. Adam's second moment is
kept in their eigenbases, which are refreshed every `precondition_frequency` updates by one step of orthogonal iteration
(power step and QR). The first update computes them by an eigendecomposition. A side longer than `max_preconditioner_dim`
keeps the identity; vectors follow AdamW. Weight decay is decoupled and hits every parameter.

Search space: the paper's setting (learning rate 3e-3, betas 0.95 and 0.95, frequency 10) with weight decay 1e-4, and
points of the benchmark's AdamW-like target setting.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from algoperf_torch.optim.adamw import adamw_, fused_adam
from algoperf_torch.optim.arithmetic import (
    Scalar,
    bias_correction,
    eigenbasis,
    move_second_moment_,
    state_dtype,
    zeros_for,
)
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative, require_positive
from algoperf_torch.optim.fused import FusedUpdate

SIDES = ("left", "right")


def rotate(matrix: Tensor, left: Tensor | None, right: Tensor | None, *, back: bool = False) -> Tensor:
    """left^T matrix right, or left matrix right^T; a side that is `None` is the identity."""
    if left is not None:
        matrix = (left if back else left.mT) @ matrix
    if right is not None:
        matrix = matrix @ (right.mT if back else right)
    return matrix


def soap_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    bases: tuple[Tensor | None, Tensor | None],
    step: Tensor,
    *,
    lr: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one parameter in place in fixed bases; `grad` and the averages are [m, n], `step` is 1 in the first."""
    exp_avg.lerp_(grad, 1 - beta1)
    rotated = rotate(grad, *bases)
    exp_avg_sq.mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
    denominator = (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(eps)
    direction = (rotate(exp_avg, *bases) / bias_correction(beta1, step)).div_(denominator)
    update = rotate(direction, *bases, back=True).reshape(param.shape)
    param.sub_(update.add(param, alpha=weight_decay).mul_(lr))


class SOAP(BaseOptimizer):
    """Shampoo with Adam in the preconditioner's eigenbasis."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_preconditioner_dim: int = 10000,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "shampoo_beta": shampoo_beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "precondition_frequency": precondition_frequency,
            "max_preconditioner_dim": max_preconditioner_dim,
            "updates": 0,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(**{name: group[name] for name in ("lr", "eps", "weight_decay", "max_preconditioner_dim")})
        require_fraction(betas=group["betas"], shampoo_beta=group["shampoo_beta"])
        require_positive(precondition_frequency=group["precondition_frequency"])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        if param.dim() < 2:
            return {"exp_avg": zeros_for(param), "exp_avg_sq": zeros_for(param)}
        matrix = param.reshape(param.shape[0], -1)
        return {name: torch.zeros(matrix.shape, dtype=state_dtype(param), device=param.device) for name in _AVERAGES}

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        group["updates"] += 1
        super().update_all(params, grads, states, group)

    def kernel_takes(self, param: Tensor) -> bool:
        return super().kernel_takes(param) and param.dim() < 2  # whose update is AdamW's

    def update_fused(self, update: FusedUpdate) -> None:
        fused_adam(update, betas=update.group["betas"], eps=update.group["eps"])

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        rule: dict[str, Any] = {
            "lr": group["lr"],
            "beta1": beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
        }
        if param.dim() < 2:
            adamw_(param, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], **rule)
            return
        matrix = grad.reshape(grad.shape[0], -1).to(state["exp_avg"].dtype)
        sides = [
            side for side, size in zip(SIDES, matrix.shape, strict=True) if size <= group["max_preconditioner_dim"]
        ]
        factors = {"left": matrix, "right": matrix.mT}
        is_first = not any(side in state for side in SIDES)
        if is_first:
            for side in sides:
                state[side] = matrix.new_zeros(len(factors[side]), len(factors[side]))
                move_second_moment_(state[side], factors[side], 1 - group["shampoo_beta"])
                basis = eigenbasis(state[side])
                state[f"{side}_basis"] = torch.eye(len(state[side])).to(state[side]) if basis is None else basis
        bases = (state.get("left_basis"), state.get("right_basis"))
        soap_(param, matrix, state["exp_avg"], state["exp_avg_sq"], bases, state["step"], **rule)
        for side in sides:
            if not is_first:
                move_second_moment_(state[side], factors[side], 1 - group["shampoo_beta"])
            if group["updates"] % group["precondition_frequency"] == 0:
                state[f"{side}_basis"] = torch.linalg.qr(state[side] @ state[f"{side}_basis"])[0]


_AVERAGES = ("exp_avg", "exp_avg_sq")
