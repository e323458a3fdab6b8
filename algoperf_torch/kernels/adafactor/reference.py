"""Adafactor over many matrices and vectors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.arithmetic import computed, write_


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
    beta2_decay: float,
    eps1: float,
    eps2: float,
    clip: float,
    weight_decay: float,
) -> None:
    """One update of every matrix [rows, columns] and its state, in place.

    `row_vars` [rows] and `col_vars` [columns] hold r and c. With g the gradient times `grad_scale`, t the step (1 in the
    first update), w = t^beta2_decay, rms the root of the mean square over the matrix, and everything in float32:

        r = r + w (mean of g^2 over columns - r)        c = c + w (mean of g^2 over rows - c)
        u = g / sqrt(max(r c / max(mean r, eps1), eps1^2))
        d = max(eps2, rms p) min(lr, 1 / sqrt t) u / max(1, rms u / clip)
        p = (1 - lr weight_decay) p - d,   or   m = beta1 m + (1 - beta1) d and p = (1 - lr weight_decay) p - m

    The second form unless the list `exp_avgs` is empty. Shazeer and Stern (2018), arXiv:1804.04235, algorithms 4 and 5;
    without momentum this is `torch.optim.Adafactor`.
    """
    for i, (param, grad, row_var, col_var, step) in enumerate(
        zip(params, grads, row_vars, col_vars, steps, strict=True)
    ):
        p, g = _scaled(param, grad, grad_scale)
        weight = step.to(p) ** beta2_decay
        row_var.lerp_(g.square().mean(dim=1).to(row_var), weight.to(row_var))
        col_var.lerp_(g.square().mean(dim=0).to(col_var), weight.to(col_var))
        r, c = row_var.to(p), col_var.to(p)
        u = g * (torch.outer(r, c) / r.mean().clamp(min=eps1)).clamp(min=eps1 * eps1).rsqrt()
        d = u * _step_size(p, u, step, lr, eps2, clip)
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
    beta2_decay: float,
    eps1: float,
    eps2: float,
    clip: float,
    weight_decay: float,
) -> None:
    """The same for tensors whose second moments are kept in full: v = v + w (g^2 - v), u = g / sqrt(max(v, eps1^2))."""
    for i, (param, grad, variance, step) in enumerate(zip(params, grads, variances, steps, strict=True)):
        p, g = _scaled(param, grad, grad_scale)
        (v,) = computed(variance)
        v = v.lerp(g * g, step.to(p) ** beta2_decay)
        write_((variance,), (v,))
        (stored,) = computed(variance)
        step_size = _step_size(p, g * v.clamp(min=eps1 * eps1).rsqrt(), step, lr, eps2, clip)
        u = g * stored.clamp(min=eps1 * eps1).rsqrt()
        _move(param, p, u * step_size, exp_avgs[i] if exp_avgs else None, lr, beta1, weight_decay)


def _scaled(param: Tensor, grad: Tensor, grad_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    p, g = computed(param, grad)
    return p, g if grad_scale is None else g * grad_scale.to(g)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _step_size(p: Tensor, u: Tensor, step: Tensor, lr: Tensor, eps2: float, clip: float) -> Tensor:
    rate = torch.minimum(lr.to(p), step.to(p).rsqrt())
    return _rms(p).clamp(min=eps2) * rate / (_rms(u) / clip).clamp(min=1.0)


def _move(
    param: Tensor, p: Tensor, d: Tensor, exp_avg: Tensor | None, lr: Tensor, beta1: float, weight_decay: float
) -> None:
    if exp_avg is not None:
        (m,) = computed(exp_avg)
        d = m.lerp(d, 1 - beta1)
        write_((exp_avg,), (d,))
    write_((param,), (p * (1 - lr.to(p) * weight_decay) - d,))
