"""Lion: one launch for all tensors."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles


def lion_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    lr: Tensor,
    grad_scale: Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    weight_decay: float,
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    table = launch.refreshed(table, params, grads, exp_avgs)
    table.launch(lion_kernel, launch.beside(lr, params), grad_scale, 1 - beta1, 1 - beta2, weight_decay)


@triton.jit
def lion_kernel(
    pointers, chunks, first_chunk, num_tensors, lr_ptr, grad_scale_ptr, one_minus_beta1, one_minus_beta2, weight_decay,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lr = tl.load(lr_ptr).to(tl.float32)
    scalars = (
        tiles.optional_scale(grad_scale_ptr), lr, tiles.f32(one_minus_beta1), tiles.f32(one_minus_beta2),
        1.0 - lr * tiles.f32(weight_decay),
    )  # fmt: skip
    tiles.update_tile(lion_arithmetic, scalars, pointers, chunks, num_tensors, (0, 1, 2), (0, 2), COLUMNS, CODES, BLOCK)


@triton.jit
def lion_arithmetic(values, scalars):
    scale, lr, one_minus_beta1, one_minus_beta2, decay = scalars
    p, g, m = values[0], values[1] * scale, values[2]
    n = tiles.lerp(m, g, one_minus_beta1)
    direction = tl.where(n > 0.0, 1.0, tl.where(n < 0.0, -1.0, n))  # 0 and NaN stay what they are
    return p * decay - lr * direction, tiles.lerp(m, g, one_minus_beta2)
