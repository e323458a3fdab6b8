"""AdamW, NAdamW and their cautious forms: one launch for all tensors, two for the cautious forms."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles
from algoperf_torch.kernels.arithmetic import log_beta


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
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    columns = (params, grads, exp_avgs, exp_avg_sqs, *((averages,) if averages else ()))
    table = launch.refreshed(table, *columns, extras=(steps,))
    lr = launch.beside(lr, params)
    boost = None
    if cautious:
        partials, arrivals, boost = table.workspace(1)
        table.launch(cautious_kernel, grad_scale, 1 - beta1, partials, arrivals, boost, NESTEROV=nesterov)
    table.launch(
        adam_kernel, lr, grad_scale, boost, 1 - beta1, log_beta(beta1), beta2, 1 - beta2, log_beta(beta2), eps,
        weight_decay, 1 - average_decay, NESTEROV=nesterov,
    )  # fmt: skip


@triton.jit
def adam_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, grad_scale_ptr, boost_ptr, one_minus_beta1, log_beta1, beta2,
    one_minus_beta2, log_beta2, eps, weight_decay, one_minus_average_decay,
    NESTEROV: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    lr = tl.load(lr_ptr).to(tl.float32)
    step_size = lr / tiles.bias_correction(step, tiles.f32(log_beta1))
    if boost_ptr is not None:
        step_size *= tl.load(boost_ptr + tiles.my_tensor(chunks))
    scalars = (
        tiles.optional_scale(grad_scale_ptr), tiles.f32(one_minus_beta1), tiles.f32(beta2), tiles.f32(one_minus_beta2),
        step_size, 1.0 / tl.sqrt(tiles.bias_correction(step, tiles.f32(log_beta2))), tiles.f32(eps),
        1.0 - lr * tiles.f32(weight_decay), tiles.f32(one_minus_average_decay), NESTEROV, boost_ptr is not None,
    )  # fmt: skip
    READS: tl.constexpr = (0, 1, 2, 3, 4) if COLUMNS == 5 else (0, 1, 2, 3)
    tiles.update_tile(
        adam_arithmetic, scalars, pointers, chunks, num_tensors, READS, (0, 2, 3, 4), COLUMNS, CODES, BLOCK
    )  # fmt: skip


@triton.jit
def adam_arithmetic(values, scalars):
    (
        scale,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        step_size,
        root_scale,
        eps,
        decay,
        average_weight,
        NESTEROV,
        CAUTIOUS,
    ) = scalars
    p, g, m, v = values[0], values[1] * scale, values[2], values[3]
    m = tiles.lerp(m, g, one_minus_beta1)
    v = v * beta2 + g * g * one_minus_beta2
    n = m
    if NESTEROV:
        n = tiles.lerp(m, g, one_minus_beta1)
    if CAUTIOUS:
        n = tl.where(n * g > 0.0, n, 0.0)
    p = p * decay - step_size * n / (tl.sqrt(v) * root_scale + eps)
    if len(values) == 5:
        return p, m, v, tiles.lerp(values[4], p, average_weight)
    else:
        return p, m, v


@triton.jit
def cautious_kernel(
    pointers, chunks, first_chunk, num_tensors, grad_scale_ptr, one_minus_beta1, partials, arrivals, boost_ptr,
    NESTEROV: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For every tensor, one over the share of elements whose direction agrees with the gradient."""
    scalars = (tiles.optional_scale(grad_scale_ptr), tiles.f32(one_minus_beta1), NESTEROV)
    tiles.update_tile(
        agreement, scalars, pointers, chunks, num_tensors, (1, 2), (), COLUMNS, CODES, BLOCK, partials, SUMS=1
    )
    if tiles.is_last_of_tensor(arrivals, chunks, first_chunk):
        agreeing = tiles.sum_of_tensor(partials, chunks, first_chunk, BLOCK)
        share = agreeing / tiles.size_of_tensor(chunks, first_chunk, BLOCK)
        tl.store(boost_ptr + tiles.my_tensor(chunks), 1.0 / tl.maximum(share, 1e-3))


@triton.jit
def agreement(values, scalars):
    scale, one_minus_beta1, NESTEROV = scalars
    g, m = values[0] * scale, values[1]
    m = tiles.lerp(m, g, one_minus_beta1)
    if NESTEROV:
        m = tiles.lerp(m, g, one_minus_beta1)
    return ((m * g > 0.0).to(tl.float32),)
