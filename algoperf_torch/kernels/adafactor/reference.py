"""Adafactor over many matrices and vectors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import bias_correction, computed, write_

SMALLEST_SQUARE = 1e-30  # epsilon 1 of the paper
SMALLEST_SCALE = 1e-3  # epsilon 2


def adafactor_matrices_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    row_vars: Sequence[Tensor],
    col_vars: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    decay_rate: float | None,
    clip: float,
    scale_parameter: bool,
    weight_decay: float,
) -> None:
    """One update of every matrix [rows, columns] and its state, in place.

    `row_vars` [rows] and `col_vars` [columns] hold r and c. With g the gradient times `grad_scale`, t the step (1 in the
    first update), w = (1 - beta2) / (1 - beta2^t), or t^decay_rate where that is given, rms the root of the mean square
    over the matrix, and everything in float32:

        r = r + w (1e-30 + mean of g^2 over columns - r)        c = c + w (1e-30 + mean of g^2 over rows - c)
        u = g / sqrt(r / mean r) / sqrt(c)
        d = lr u / max(1, rms u / clip), times max(1e-3, rms p) if `scale_parameter`
        p = (1 - lr weight_decay) p - d,   or   m = beta1 m + (1 - beta1) d and p = (1 - lr weight_decay) p - m

    The second form unless the list `exp_avgs` is empty. Shazeer and Stern (2018), arXiv:1804.04235, algorithms 4 and 5.
    """
    for i, (param, grad, row_var, col_var, step) in enumerate(
        zip(params, grads, row_vars, col_vars, steps, strict=True)
    ):
        p, g = _scaled(param, grad, grad_scale)
        weight = _weight(step, beta2, decay_rate)
        square = g.square() + SMALLEST_SQUARE
        row_var.lerp_(square.mean(dim=1).to(row_var), weight.to(row_var))
        col_var.lerp_(square.mean(dim=0).to(col_var), weight.to(col_var))
        r, c = row_var.to(p), col_var.to(p)
        u = g * (r / r.mean()).rsqrt().unsqueeze(1) * c.rsqrt()
        d = u * _step_size(p, u, lr, clip, scale_parameter=scale_parameter)
        _move(param, p, d, exp_avgs[i] if exp_avgs else None, lr, beta1, weight_decay)


def adafactor_vectors_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    variances: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    decay_rate: float | None,
    clip: float,
    scale_parameter: bool,
    weight_decay: float,
) -> None:
    """The same for tensors whose second moments are kept in full: v = v + w (1e-30 + g^2 - v), u = g / sqrt(v)."""
    for i, (param, grad, variance, step) in enumerate(zip(params, grads, variances, steps, strict=True)):
        p, g = _scaled(param, grad, grad_scale)
        (v,) = computed(variance)
        v = v.lerp(g * g + SMALLEST_SQUARE, _weight(step, beta2, decay_rate).to(v))
        write_((variance,), (v,))
        (stored,) = computed(variance)
        step_size = _step_size(p, g * v.rsqrt(), lr, clip, scale_parameter=scale_parameter)
        _move(param, p, g * stored.rsqrt() * step_size, exp_avgs[i] if exp_avgs else None, lr, beta1, weight_decay)


def _scaled(param: Tensor, grad: Tensor, grad_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    p, g = computed(param, grad)
    return p, g if grad_scale is None else g * grad_scale.to(g)


def _weight(step: Tensor, beta2: float, decay_rate: float | None) -> Tensor:
    """The weight of the newest square: Adam's bias correction folded into its decay, or a power of the step."""
    return (1 - beta2) / bias_correction(step, beta2) if decay_rate is None else step.double() ** decay_rate


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _step_size(p: Tensor, u: Tensor, lr: Tensor, clip: float, *, scale_parameter: bool) -> Tensor:
    size = lr.to(p) / (_rms(u) / clip).clamp(min=1.0)
    return size * _rms(p).clamp(min=SMALLEST_SCALE) if scale_parameter else size


def _move(
    param: Tensor, p: Tensor, d: Tensor, exp_avg: Tensor | None, lr: Tensor, beta1: float, weight_decay: float
) -> None:
    if exp_avg is not None:
        (m,) = computed(exp_avg)
        d = m.lerp(d, 1 - beta1)
        write_((exp_avg,), (d,))
    write_((param,), (p * (1 - lr.to(p) * weight_decay) - d,))
