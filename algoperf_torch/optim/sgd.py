"""Stochastic gradient descent with heavy-ball (Polyak, 1964) or Nesterov momentum (Sutskever et al., 2013).

Weight decay is L2 regularisation inside the gradient and hits every parameter, as in the AlgoPerf baselines.

Search spaces: the points with which the benchmark's targets were set on its SGD workloads (imagenet_resnet and its gelu
variant, fastmri, ogbg), every one offered to all workloads, and a plain one in their middle (learning rate 0.1,
momentum 0.9, weight decay 1e-4: He et al., 2015, arXiv:1512.03385, section 3.4).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from algoperf_torch.kernels.sgd import sgd_ as sgd_kernel_
from algoperf_torch.optim.arithmetic import Scalar, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative
from algoperf_torch.optim.fused import FusedUpdate


def sgd_(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    *,
    lr: Scalar,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One update of one parameter in place: b <- momentum b + g, and a step along b, or along g + momentum b (Nesterov)."""
    grad = grad.to(momentum_buffer.dtype)
    if weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    momentum_buffer.mul_(momentum).add_(grad)
    update = grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    param.sub_(update * lr)


class SGD(BaseOptimizer):
    """SGD with momentum; agrees with `torch.optim.SGD` at dampening 0."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], weight_decay=group["weight_decay"])
        require_fraction(momentum=group["momentum"])

    def init_state(self, param: Tensor) -> dict[str, Any]:
        return {"momentum_buffer": zeros_for(param)}

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        sgd_(
            param,
            grad,
            state["momentum_buffer"],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )

    def update_fused(self, update: FusedUpdate) -> None:
        sgd_kernel_.with_table(
            update.table(),
            update.params,
            update.grads,
            update.column("momentum_buffer"),
            update.lr,
            update.grad_scale,
            momentum=update.group["momentum"],
            weight_decay=update.group["weight_decay"],
            nesterov=update.group["nesterov"],
        )
