"""LAMB in two launches for all tensors: moments and norms, then the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles
from algoperf_torch.kernels.arithmetic import log_beta


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
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    table = launch.refreshed(table, params, grads, exp_avgs, exp_avg_sqs, extras=(steps,))
    partials, arrivals, ratios = table.workspace(2)
    table.launch(
        lamb_moments_kernel, grad_scale, partials, arrivals, ratios, 1 - beta1, log_beta(beta1), beta2, 1 - beta2,
        log_beta(beta2), eps, weight_decay,
    )  # fmt: skip
    table.launch(
        lamb_apply_kernel, launch.beside(lr, params), ratios, log_beta(beta1), log_beta(beta2), eps, weight_decay
    )


@triton.jit
def lamb_moments_kernel(
    pointers, chunks, first_chunk, num_tensors, grad_scale_ptr, partials, arrivals, ratios, one_minus_beta1, log_beta1,
    beta2, one_minus_beta2, log_beta2, eps, weight_decay,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Moves m and v on, and leaves |p| / |u| of every tensor in `ratios`."""
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    scalars = (
        tiles.optional_scale(grad_scale_ptr), tiles.f32(one_minus_beta1), tiles.f32(beta2), tiles.f32(one_minus_beta2),
        1.0 / tiles.bias_correction(step, tiles.f32(log_beta1)),
        1.0 / tl.sqrt(tiles.bias_correction(step, tiles.f32(log_beta2))), tiles.f32(eps), tiles.f32(weight_decay),
    )  # fmt: skip
    tiles.update_tile(
        lamb_moments,
        scalars,
        pointers,
        chunks,
        num_tensors,
        (0, 1, 2, 3),
        (2, 3),
        COLUMNS,
        CODES,
        BLOCK,
        partials,
        SUMS=2,
    )
    if tiles.is_last_of_tensor(arrivals, chunks, first_chunk):
        p_norm = tl.sqrt(tiles.sum_of_tensor(partials, chunks, first_chunk, BLOCK))
        u_norm = tl.sqrt(tiles.sum_of_tensor(partials + tl.num_programs(0), chunks, first_chunk, BLOCK))
        ratio = tl.where((p_norm > 0.0) & (u_norm > 0.0), p_norm / u_norm, 1.0)
        tl.store(ratios + tiles.my_tensor(chunks), ratio)


@triton.jit
def lamb_moments(values, scalars):
    scale, one_minus_beta1, beta2, one_minus_beta2, m_scale, root_scale, eps, weight_decay = scalars
    p, g, m, v = values
    g = g * scale
    m = tiles.lerp(m, g, one_minus_beta1)
    v = v * beta2 + g * g * one_minus_beta2
    u = m * m_scale / (tl.sqrt(v) * root_scale + eps) + p * weight_decay
    return m, v, p * p, u * u


@triton.jit
def lamb_apply_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, ratios, log_beta1, log_beta2, eps, weight_decay,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    scalars = (
        tl.load(lr_ptr).to(tl.float32) * tl.load(ratios + tiles.my_tensor(chunks)),
        1.0 / tiles.bias_correction(step, tiles.f32(log_beta1)),
        1.0 / tl.sqrt(tiles.bias_correction(step, tiles.f32(log_beta2))), tiles.f32(eps), tiles.f32(weight_decay),
    )  # fmt: skip
    tiles.update_tile(lamb_apply, scalars, pointers, chunks, num_tensors, (0, 2, 3), (0,), COLUMNS, CODES, BLOCK)


@triton.jit
def lamb_apply(values, scalars):
    step_size, m_scale, root_scale, eps, weight_decay = scalars
    p, m, v = values
    return (p - step_size * (m * m_scale / (tl.sqrt(v) * root_scale + eps) + p * weight_decay),)
