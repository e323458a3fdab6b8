"""Lion over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import computed, write_


def lion_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One update of every parameter and its momentum, in place.

    With g the gradient times `grad_scale` and everything computed in float32:

        p = (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g)        m = beta2 m + (1 - beta2) g

    Chen et al. (2023), arXiv:2302.06675.
    """
    for param, grad, exp_avg in zip(params, grads, exp_avgs, strict=True):
        p, g, m = computed(param, grad, exp_avg)
        rate = lr.to(p)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        direction = m.lerp(g, 1 - beta1).sign()
        write_((param, exp_avg), (p * (1 - rate * weight_decay) - rate * direction, m.lerp(g, 1 - beta2)))
