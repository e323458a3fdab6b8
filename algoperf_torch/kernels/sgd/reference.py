"""Stochastic gradient descent with heavy-ball or Nesterov momentum over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import computed, write_


def sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> None:
    """One update of every parameter and its momentum, in place.

    With g the gradient times `grad_scale` plus weight_decay p, computed in float32:

        b = momentum b + g        p = p - lr b, or p - lr (g + momentum b) if nesterov

    The list `momentum_buffers` may be empty: then p = p - lr g. Polyak (1964); Sutskever et al. (2013).
    """
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        p, g = computed(param, grad)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        g = g + p * weight_decay
        direction = g
        if momentum_buffers:
            (b,) = computed(momentum_buffers[i])
            b = b * momentum + g
            write_((momentum_buffers[i],), (b,))
            direction = g + b * momentum if nesterov else b
        write_((param,), (p - lr.to(p) * direction,))
