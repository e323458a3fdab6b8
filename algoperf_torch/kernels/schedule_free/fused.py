"""Schedule-free AdamW and SGD: one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles
from algoperf_torch.kernels.arithmetic import log_beta


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
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    columns = (params, grads, zs, exp_avg_sqs) if exp_avg_sqs else (params, grads, zs)
    table = launch.refreshed(table, *columns, extras=(steps, weights))
    table.launch(
        schedule_free_kernel, launch.beside(lr, params), grad_scale, beta1, beta2, 1 - beta2, log_beta(beta2), eps,
        weight_decay,
    )  # fmt: skip


@triton.jit
def schedule_free_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, grad_scale_ptr, beta1, beta2, one_minus_beta2, log_beta2, eps,
    weight_decay, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    weight = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS + 1)
    scalars = (
        tiles.optional_scale(grad_scale_ptr), tl.load(lr_ptr).to(tl.float32), weight,
        tiles.f32(beta1) * (1.0 - weight) - 1.0, tiles.f32(beta2), tiles.f32(one_minus_beta2),
        1.0 / tl.sqrt(tiles.bias_correction(step, tiles.f32(log_beta2))), tiles.f32(eps), tiles.f32(weight_decay),
    )  # fmt: skip
    READS: tl.constexpr = (0, 1, 2, 3) if COLUMNS == 4 else (0, 1, 2)
    tiles.update_tile(
        schedule_free_arithmetic, scalars, pointers, chunks, num_tensors, READS, (0, 2, 3), COLUMNS, CODES, BLOCK
    )


@triton.jit
def schedule_free_arithmetic(values, scalars):
    scale, lr, weight, pull, beta2, one_minus_beta2, root_scale, eps, weight_decay = scalars
    y, g, z = values[0], values[1] * scale, values[2]
    if len(values) == 4:
        v = values[3] * beta2 + g * g * one_minus_beta2
        d = lr * (g / (tl.sqrt(v) * root_scale + eps) + y * weight_decay)
        return tiles.lerp(y, z, weight) + d * pull, z - d, v
    else:
        d = lr * (g + y * weight_decay)
        return tiles.lerp(y, z, weight) + d * pull, z - d
