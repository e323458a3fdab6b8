"""AdamW, NAdamW and their cautious forms over many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import bias_correction, computed, write_


def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    averages: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    nesterov: bool = False,
    cautious: bool = False,
    average_decay: float = 0.0,
) -> None:
    """One update of every parameter and its state, in place.

    With g the gradient times `grad_scale`, t the step (1 in the first update) and everything computed in float32:

        m = beta1 m + (1 - beta1) g                     v = beta2 v + (1 - beta2) g^2
        n = m, or beta1 m + (1 - beta1) g if nesterov   n = n [n g > 0] / max(mean [n g > 0], 1e-3) if cautious
        p = (1 - lr weight_decay) p - lr n / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        a = average_decay a + (1 - average_decay) p     unless the list `averages` is empty

    Loshchilov and Hutter (2019), arXiv:1711.05101; NAdamW as in AlgoPerf's target-setting runs; the mask of Liang et al.
    (2024), arXiv:2411.16085, with its mean over each tensor.
    """
    for i, (param, grad, exp_avg, exp_avg_sq, step) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True)
    ):
        p, g, m, v = computed(param, grad, exp_avg, exp_avg_sq)
        rate = lr.to(p)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        m = m.lerp(g, 1 - beta1)
        v = v * beta2 + g * g * (1 - beta2)
        n = m.lerp(g, 1 - beta1) if nesterov else m
        if cautious:
            mask = (n * g > 0).to(n)
            n = n * (mask / mask.mean().clamp(min=1e-3))
        n = n / bias_correction(step, beta1).to(p)
        p = p * (1 - rate * weight_decay) - rate * n / ((v / bias_correction(step, beta2).to(p)).sqrt() + eps)
        write_((param, exp_avg, exp_avg_sq), (p, m, v))
        if averages:
            (a,) = computed(averages[i])
            write_((averages[i],), (a.lerp(p, 1 - average_decay),))
