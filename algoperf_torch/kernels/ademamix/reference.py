"""AdEMAMix over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import bias_correction, computed, write_


def ademamix_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    slow_exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    alpha: Tensor,
    beta3: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of every parameter and its state, in place.

    `alpha` and `beta3` (0-d) follow schedules. With g the gradient times `grad_scale`, t the step (1 in the first update)
    and everything computed in float32:

        m = beta1 m + (1 - beta1) g        s = beta3 s + (1 - beta3) g        v = beta2 v + (1 - beta2) g^2
        p = (1 - lr weight_decay) p - lr (m / (1 - beta1^t) + alpha s) / (sqrt(v / (1 - beta2^t)) + eps)

    Pagliardini et al. (2024), arXiv:2409.03137, algorithm 1.
    """
    for param, grad, exp_avg, slow_exp_avg, exp_avg_sq, step in zip(
        params, grads, exp_avgs, slow_exp_avgs, exp_avg_sqs, steps, strict=True
    ):
        p, g, m, s, v = computed(param, grad, exp_avg, slow_exp_avg, exp_avg_sq)
        rate = lr.to(p)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        m = m.lerp(g, 1 - beta1)
        s = s.lerp(g, (1 - beta3.double()).to(s))
        v = v * beta2 + g * g * (1 - beta2)
        n = m / bias_correction(step, beta1).to(p) + alpha.to(p) * s
        p = p * (1 - rate * weight_decay) - rate * n / ((v / bias_correction(step, beta2).to(p)).sqrt() + eps)
        write_((param, exp_avg, slow_exp_avg, exp_avg_sq), (p, m, s, v))
