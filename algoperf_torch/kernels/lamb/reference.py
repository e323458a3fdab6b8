"""LAMB over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.arithmetic import bias_correction, computed, write_


def lamb_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of every parameter and its state, in place.

    With g the gradient times `grad_scale`, t the step (1 in the first update) and everything computed in float32:

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p = p - lr r u        with r = |p| / |u|, the norms over each tensor, or 1 where either is 0

    You et al. (2020), arXiv:1904.00962, with the identity for its scaling function.
    """
    for param, grad, exp_avg, exp_avg_sq, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        p, g, m, v = computed(param, grad, exp_avg, exp_avg_sq)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        m = m.lerp(g, 1 - beta1)
        v = v * beta2 + g * g * (1 - beta2)
        write_((exp_avg, exp_avg_sq), (m, v))
        ratio = _ratio(p, _direction(p, m, v, step, beta1, beta2, eps, weight_decay))
        m, v = computed(exp_avg, exp_avg_sq)  # as stored
        u = _direction(p, m, v, step, beta1, beta2, eps, weight_decay)
        write_((param,), (p - lr.to(p) * ratio * u,))


def _direction(
    p: Tensor, m: Tensor, v: Tensor, step: Tensor, beta1: float, beta2: float, eps: float, weight_decay: float
) -> Tensor:
    root = (v / bias_correction(step, beta2).to(p)).sqrt()
    return m / bias_correction(step, beta1).to(p) / (root + eps) + p * weight_decay


def _ratio(p: Tensor, u: Tensor) -> Tensor:
    p_norm, u_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(u)
    return torch.where((p_norm > 0) & (u_norm > 0), p_norm / u_norm, 1.0)
