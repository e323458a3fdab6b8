"""Schedule-free AdamW and SGD over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import bias_correction, computed, write_


def schedule_free_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    zs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    weights: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of y (which the parameters hold) and z, in place.

    `weights` (0-d, one for each tensor) are c, the weight of the new z in the average x. With g the gradient times
    `grad_scale`, t the step (1 in the first update) and everything computed in float32:

        v = beta2 v + (1 - beta2) g^2                d = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay y
        y = (1 - c) y + c z + lr (beta1 (1 - c) - 1) d        z = z - lr d

    The list `exp_avg_sqs` may be empty: then it is schedule-free SGD, d = g + weight_decay y.
    Defazio et al. (2024), arXiv:2405.15682, algorithm 1, with x eliminated.
    """
    for i, (param, grad, z_state, step, weight) in enumerate(zip(params, grads, zs, steps, weights, strict=True)):
        y, g, z = computed(param, grad, z_state)
        rate, c = lr.to(y), weight.to(y)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        d = g
        if exp_avg_sqs:
            (v,) = computed(exp_avg_sqs[i])
            v = v * beta2 + g * g * (1 - beta2)
            write_((exp_avg_sqs[i],), (v,))
            d = g / ((v / bias_correction(step, beta2).to(y)).sqrt() + eps)
        d = (d + y * weight_decay) * rate
        write_((param, z_state), (y.lerp(z, c) + d * (beta1 * (1 - c) - 1), z - d))
