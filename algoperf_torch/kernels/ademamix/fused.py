"""AdEMAMix: one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles
from algoperf_torch.kernels.ademamix.reference import slow_decays
from algoperf_torch.kernels.arithmetic import log_beta


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
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    table = launch.refreshed(table, params, grads, exp_avgs, slow_exp_avgs, exp_avg_sqs, extras=(steps,))
    log_first, log_last = slow_decays(beta1, beta3, mix_warmup)
    table.launch(
        ademamix_kernel, launch.beside(lr, params), grad_scale, 1 - beta1, log_beta(beta1), beta2, 1 - beta2,
        log_beta(beta2), 1 / max(mix_warmup, 1), log_first * log_last, log_last, log_first - log_last, alpha, eps,
        weight_decay,
    )  # fmt: skip


@triton.jit
def ademamix_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, grad_scale_ptr, one_minus_beta1, log_beta1, beta2,
    one_minus_beta2, log_beta2, inverse_warmup, log_product, log_last, log_difference, alpha, eps, weight_decay,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    lr = tl.load(lr_ptr).to(tl.float32)
    share = tl.minimum(step * tiles.f32(inverse_warmup), 1.0)
    log_slow = tiles.f32(log_product) / (tiles.f32(log_last) + share * tiles.f32(log_difference))
    scalars = (
        tiles.optional_scale(grad_scale_ptr), tiles.f32(one_minus_beta1), tiles.bias_correction(1.0, log_slow),
        tiles.f32(beta2), tiles.f32(one_minus_beta2), lr / tiles.bias_correction(step, tiles.f32(log_beta1)),
        lr * share * tiles.f32(alpha), 1.0 / tl.sqrt(tiles.bias_correction(step, tiles.f32(log_beta2))),
        tiles.f32(eps), 1.0 - lr * tiles.f32(weight_decay),
    )  # fmt: skip
    tiles.update_tile(
        ademamix_arithmetic,
        scalars,
        pointers,
        chunks,
        num_tensors,
        (0, 1, 2, 3, 4),
        (0, 2, 3, 4),
        COLUMNS,
        CODES,
        BLOCK,
    )


@triton.jit
def ademamix_arithmetic(values, scalars):
    scale, one_minus_beta1, one_minus_beta3, beta2, one_minus_beta2, step_size, slow_size, root_scale, eps, decay = (
        scalars
    )
    p, g, m, s, v = values
    g = g * scale
    m = tiles.lerp(m, g, one_minus_beta1)
    s = tiles.lerp(s, g, one_minus_beta3)
    v = v * beta2 + g * g * one_minus_beta2
    return p * decay - (step_size * m + slow_size * s) / (tl.sqrt(v) * root_scale + eps), m, s, v
