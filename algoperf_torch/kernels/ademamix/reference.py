"""AdEMAMix over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.arithmetic import bias_correction, computed, log_beta, write_


def ademamix_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    slow_exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    beta3: float,
    alpha: float,
    mix_warmup: int,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of every parameter and its state, in place.

    With g the gradient times `grad_scale`, t the step (1 in the first update), everything computed in float32, and
    a share r = min(t / mix_warmup, 1) of the warm-up done (1 without one):

        m = beta1 m + (1 - beta1) g        s = b s + (1 - b) g        v = beta2 v + (1 - beta2) g^2
        p = (1 - lr weight_decay) p - lr (m / (1 - beta1^t) + r alpha s) / (sqrt(v / (1 - beta2^t)) + eps)

    b goes from beta1 to beta3 linearly in its half-life: log b = log beta1 log beta3 / ((1 - r) log beta3 + r log beta1).
    Pagliardini et al. (2024), arXiv:2409.03137.
    """
    log_first, log_last = slow_decays(beta1, beta3, mix_warmup)
    for param, grad, exp_avg, slow_exp_avg, exp_avg_sq, step in zip(
        params, grads, exp_avgs, slow_exp_avgs, exp_avg_sqs, steps, strict=True
    ):
        p, g, m, s, v = computed(param, grad, exp_avg, slow_exp_avg, exp_avg_sq)
        rate = lr.to(p)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        share = (step.double() / max(mix_warmup, 1)).clamp(max=1.0)
        slow_weight = -torch.expm1(log_first * log_last / (log_last + share * (log_first - log_last)))
        m = m.lerp(g, 1 - beta1)
        s = s.lerp(g, slow_weight.to(s))
        v = v * beta2 + g * g * (1 - beta2)
        n = m / bias_correction(step, beta1).to(p) + (share * alpha).to(p) * s
        p = p * (1 - rate * weight_decay) - rate * n / ((v / bias_correction(step, beta2).to(p)).sqrt() + eps)
        write_((param, exp_avg, slow_exp_avg, exp_avg_sq), (p, m, s, v))


def slow_decays(beta1: float, beta3: float, mix_warmup: int) -> tuple[float, float]:
    """Logarithms of the slow average's decay before the warm-up and after it; the same where there is none."""
    last = log_beta(beta3)
    return (math.log(beta1) if mix_warmup and 0 < beta1 < beta3 else last), last
