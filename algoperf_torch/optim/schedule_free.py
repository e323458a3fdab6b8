"""Schedule-free AdamW and SGD (Defazio et al., 2024, arXiv:2405.15682, equations 3 to 5 and algorithm 1).

Gradients are taken at y, a mixture of the fast iterate z and its running average x; what is evaluated is x:

    y = (1 - beta) z + beta x        z <- z - lr (direction at y + weight_decay y)        x <- (1 - c) x + c z

where c is lr_max^2 over the sum of all lr_max^2 so far. The parameters hold y while training and x after `eval`, so only z
is kept beside them. No schedule is needed but for a warm-up. Weight decay is decoupled, taken at y, and hits every
parameter. Around each evaluation `OptimizerAlgorithm` calls `eval` and `train` and recomputes batch-norm statistics at x.

Search space of AdamW: the point of the self-tuning winner of AlgoPerf 0.5 (learning rate 0.0025, betas 0.9 and 0.99552,
weight decay 0.081, warm-up 0.02, label smoothing 0.2), and four with one thing changed each: learning rates up to ten
times those of scheduled AdamW and a beta1 up to 0.98 are the authors' advice. Of SGD: the like around their learning rate
for ResNet-50 (1.5 to 10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.schedule_free import schedule_free_ as schedule_free_kernel_
from algoperf_torch.optim.arithmetic import Scalar, bias_correction, state_dtype, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative, require_positive
from algoperf_torch.optim.fused import FusedUpdate


def average_weight(lr: Scalar, lr_max: Tensor, weight_sum: Tensor) -> Tensor:
    """The weight c of the newest z in the average x; moves `lr_max` and `weight_sum` (0-d tensors) on."""
    lr_max.clamp_(min=lr)
    weight = lr_max.square()
    weight_sum.add_(weight)
    return weight / weight_sum.clamp_min(torch.finfo(weight_sum.dtype).tiny)  # 0 while the learning rate is 0


def schedule_free_(
    param: Tensor, direction: Tensor, z: Tensor, weight: Tensor, *, lr: Scalar, beta: float, weight_decay: float
) -> None:
    """Moves y (held by `param`) and z in place along `direction`, which is overwritten; `weight` is that of the new z."""
    y, weight = param.to(z.dtype), weight.to(z.dtype)
    direction.add_(y, alpha=weight_decay).mul_(lr)
    # y' = (1 - beta) z' + beta x' with x' = (1 - c) x + c z', x = (y - (1 - beta) z) / beta and z' = z - direction
    step = y.lerp(z, weight).add_(direction * (beta * (1 - weight) - 1))
    z.sub_(direction)
    param.copy_(step)


def schedule_free_adamw_(
    param: Tensor,
    grad: Tensor,
    z: Tensor,
    exp_avg_sq: Tensor,
    weight: Tensor,
    step: Tensor,
    *,
    lr: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one parameter in place; `step` is 1 in the first, `weight` comes from `average_weight`."""
    grad = grad.to(z.dtype)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(eps)
    schedule_free_(param, grad / denominator, z, weight, lr=lr, beta=beta1, weight_decay=weight_decay)


class ScheduleFree(BaseOptimizer):
    """What both share: z, the weights of the average, and the switch between y and x."""

    def init_state(self, param: Tensor) -> dict[str, Any]:
        zero = torch.zeros((), dtype=torch.float32, device=param.device)
        return {
            "z": param.detach().to(state_dtype(param), copy=True),
            "lr_max": zero,
            "weight_sum": zero.clone(),
        }

    def averaging(self, group: dict[str, Any]) -> float:
        """The share of x in y."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None, *, grad_scale: Tensor | None = None) -> Any:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__} holds the weights for evaluation. Call `train()` before `step()`."
            )
        return super().step(closure, grad_scale=grad_scale)

    @torch.no_grad()
    def eval(self) -> None:
        """Puts x into the parameters."""
        self._switch(train_mode=False)

    @torch.no_grad()
    def train(self) -> None:
        """Puts y back into the parameters."""
        self._switch(train_mode=True)

    def _switch(self, *, train_mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train_mode:
                continue
            beta = self.averaging(group)
            for param in group["params"]:
                if "z" in self.state[param]:
                    z = self.state[param]["z"]
                    param.copy_(param.to(z.dtype).lerp(z, 1 - beta if train_mode else 1 - 1 / beta))
            group["train_mode"] = train_mode


def fused_schedule_free(
    update: FusedUpdate, exp_avg_sqs: tuple[Tensor, ...], *, beta1: float, beta2: float, eps: float
) -> None:
    """Schedule-free AdamW over all parameters of an update, SGD where `exp_avg_sqs` is empty."""
    size, device = len(update), update.params[0].device
    weights, weight_of_each = update.keep("weights", lambda: _unbound(torch.empty(size, device=device)))
    weights.copy_(average_weight(update.lr, update.packed("lr_max"), update.packed("weight_sum")))
    schedule_free_kernel_.with_table(
        update.table(),
        update.params,
        update.grads,
        update.column("z"),
        exp_avg_sqs,
        update.column("step"),
        weight_of_each,
        update.lr,
        update.grad_scale,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=update.group["weight_decay"],
    )


def _unbound(flat: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return flat, flat.unbind()


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW; beta1 is the share of the average in the point where gradients are taken."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "train_mode": True}
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], eps=group["eps"], weight_decay=group["weight_decay"])
        require_fraction(betas=group["betas"])
        require_positive(beta1=group["betas"][0])

    def averaging(self, group: dict[str, Any]) -> float:
        return float(group["betas"][0])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        return {**super().init_state(param), "exp_avg_sq": zeros_for(param)}

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        schedule_free_adamw_(
            param,
            grad,
            state["z"],
            state["exp_avg_sq"],
            average_weight(group["lr"], state["lr_max"], state["weight_sum"]),
            state["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )

    def update_fused(self, update: FusedUpdate) -> None:
        beta1, beta2 = update.group["betas"]
        fused_schedule_free(update, update.column("exp_avg_sq"), beta1=beta1, beta2=beta2, eps=update.group["eps"])


class ScheduleFreeSGD(ScheduleFree):
    """Schedule-free SGD; `momentum` is the share of the average in the point where gradients are taken."""

    def __init__(
        self, params: Iterable[Any], lr: Scalar = 1.0, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "train_mode": True})

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], weight_decay=group["weight_decay"])
        require_positive(momentum=group["momentum"])
        require_fraction(momentum=group["momentum"])

    def averaging(self, group: dict[str, Any]) -> float:
        return float(group["momentum"])

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        schedule_free_(
            param,
            grad.to(state["z"].dtype, copy=True),
            state["z"],
            average_weight(group["lr"], state["lr_max"], state["weight_sum"]),
            lr=group["lr"],
            beta=group["momentum"],
            weight_decay=group["weight_decay"],
        )

    def update_fused(self, update: FusedUpdate) -> None:
        fused_schedule_free(update, (), beta1=update.group["momentum"], beta2=0.0, eps=0.0)
