"""Updates written with `torch._foreach_*`, as `torch.optim` would: what a fused update has to beat.

Each takes the lists and tensors of the kernel of the same name, without clipping and averaging.
"""

from __future__ import annotations

from typing import Any

import torch


def _corrections(steps: Any, beta1: float, beta2: float) -> tuple[Any, Any]:
    first = torch._foreach_pow(beta1, steps)
    second = torch._foreach_pow(beta2, steps)
    for column in (first, second):
        torch._foreach_neg_(column)
        torch._foreach_add_(column, 1)
    torch._foreach_sqrt_(second)
    return first, second


def _moments(grads: Any, m: Any, v: Any, beta1: float, beta2: float) -> None:
    torch._foreach_lerp_(m, grads, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, grads, grads, 1 - beta2)


def _denominators(v: Any, second: Any, eps: float) -> Any:
    roots = torch._foreach_sqrt(v)
    torch._foreach_div_(roots, second)
    torch._foreach_add_(roots, eps)
    return roots


def _step(params: Any, numerators: Any, denominators: Any, lr: Any, weight_decay: float) -> None:
    torch._foreach_div_(numerators, denominators)
    torch._foreach_mul_(numerators, -lr)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, numerators)


def nadamw(params, grads, m, v, averages, steps, lr, *, beta1, beta2, eps, weight_decay, **_):
    _moments(grads, m, v, beta1, beta2)
    first, second = _corrections(steps, beta1, beta2)
    numerators = torch._foreach_lerp(m, grads, 1 - beta1)
    torch._foreach_div_(numerators, first)
    _step(params, numerators, _denominators(v, second, eps), lr, weight_decay)


def sgd(params, grads, buffers, lr, *, momentum, weight_decay, nesterov):
    grads = torch._foreach_add(grads, params, alpha=weight_decay)
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    if nesterov:
        torch._foreach_add_(grads, buffers, alpha=momentum)
        torch._foreach_mul_(grads, -lr)
        torch._foreach_add_(params, grads)
    else:
        torch._foreach_add_(params, torch._foreach_mul(buffers, -lr))


def lion(params, grads, m, lr, *, beta1, beta2, weight_decay):
    directions = torch._foreach_lerp(m, grads, 1 - beta1)
    torch._foreach_sign_(directions)
    torch._foreach_mul_(directions, -lr)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, directions)
    torch._foreach_lerp_(m, grads, 1 - beta2)


def ademamix(params, grads, m, slow, v, steps, lr, *, beta1, beta2, beta3, alpha, eps, weight_decay, **_):
    _moments(grads, m, v, beta1, beta2)
    torch._foreach_mul_(slow, beta3)
    torch._foreach_add_(slow, torch._foreach_mul(grads, 1 - beta3))
    first, second = _corrections(steps, beta1, beta2)
    numerators = torch._foreach_div(m, first)
    torch._foreach_add_(numerators, torch._foreach_mul(slow, alpha))  # as after the warm-up
    _step(params, numerators, _denominators(v, second, eps), lr, weight_decay)


def schedule_free(params, grads, z, v, steps, weights, lr, *, beta1, beta2, eps, weight_decay):
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
    _, second = _corrections(steps, beta1, beta2)
    directions = torch._foreach_div(grads, _denominators(v, second, eps))
    torch._foreach_add_(directions, params, alpha=weight_decay)
    torch._foreach_mul_(directions, lr)
    weight = weights[0]
    torch._foreach_mul_(params, 1 - weight)
    torch._foreach_add_(params, torch._foreach_mul(z, weight))
    torch._foreach_add_(params, torch._foreach_mul(directions, beta1 * (1 - weight) - 1))
    torch._foreach_sub_(z, directions)


def lamb(params, grads, m, v, steps, lr, *, beta1, beta2, eps, weight_decay):
    _moments(grads, m, v, beta1, beta2)
    first, second = _corrections(steps, beta1, beta2)
    updates = torch._foreach_div(m, first)
    torch._foreach_div_(updates, _denominators(v, second, eps))
    torch._foreach_add_(updates, params, alpha=weight_decay)
    norms, update_norms = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
    ratios = torch.where((norms > 0) & (update_norms > 0), norms / update_norms, 1.0) * -lr
    torch._foreach_mul_(updates, list(ratios.unbind()))
    torch._foreach_add_(params, updates)


def ema(averages, params, weight):
    torch._foreach_lerp_(averages, params, weight)
