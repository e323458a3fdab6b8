"""Adafactor: four launches for all matrices, whose statistics depend on each other, and two for all vectors.

A program works on a strip of rows. Row sums are complete inside it; column sums of the strips are added by a second kernel,
in their order, so that results do not depend on scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch, tiles
from algoperf_torch.kernels.arithmetic import log_beta
from algoperf_torch.kernels.launch import ROWS

COLS = 64  # columns of a strip that are held at a time


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
    table: launch.MatrixTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    columns = (params, grads, exp_avgs) if exp_avgs else (params, grads)
    table = table if table is not None else launch.MatrixTable()
    table.refresh(*columns, extras=(row_vars, col_vars, steps))
    if not table.num_programs:
        return
    partials, arrivals, sizes = table.workspace(2)
    scales = torch.empty_like(sizes)
    strips, widths = table.first_chunk.diff(), table.shapes[:, 1]
    sums_start = (strips * widths).cumsum(0) - strips * widths  # where the column sums of each matrix lie
    column_sums = torch.empty(sum(-(-len(param) // ROWS) * param.shape[1] for param in params), device=params[0].device)
    lr, common = launch.beside(lr, params), {"COLS": COLS}
    decay = (1 - beta2, log_beta(beta2) if decay_rate is None else decay_rate)
    switches = {"POWER": decay_rate is not None, "SCALED": scale_parameter}
    table.launch(
        factor_rows_kernel, table.shapes, sums_start, column_sums, partials, grad_scale, *decay, **switches, **common
    )
    launch.launch(
        factor_columns_kernel, (table.num_tensors, max(-(-param.shape[1] // COLS) for param in params)),
        table.pointers, table.first_chunk, table.num_tensors, table.num_programs, table.shapes, sums_start, column_sums,
        partials, scales, sizes, *decay, **switches, COLUMNS=len(columns), COLS=COLS,
    )  # fmt: skip
    table.launch(factor_size_kernel, table.shapes, partials, arrivals, scales, sizes, lr, grad_scale, clip, **common)
    table.launch(factor_apply_kernel, table.shapes, scales, sizes, lr, grad_scale, 1 - beta1, weight_decay, **common)


# ---------------------------------------------------------------- strips of matrices


@triton.jit
def run_strip(
    FUNCTION: tl.constexpr,
    args,
    pointers,
    chunks,
    num_tensors,
    shapes,
    COLUMNS: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Runs FUNCTION on the strip of this program, with 128-bit loads where addresses and width allow."""
    matrix, first_row, count, code = tiles.locate(chunks, ROWS)
    width = tl.load(shapes + 2 * matrix + 1)
    wide = tiles.is_aligned(pointers, num_tensors, matrix, COLUMNS) & (width % 16 == 0)
    strip = (pointers, num_tensors, matrix, first_row, count, width)
    for i in tl.static_range(len(CODES)):
        if code == i:
            if wide:
                FUNCTION(args, strip, COLUMNS, CODES[i], True, ROWS, COLS)
            else:
                FUNCTION(args, strip, COLUMNS, CODES[i], False, ROWS, COLS)


@triton.jit
def strip_addresses(
    strip,
    column: tl.constexpr,
    first_col,
    CODE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """(pointers, mask) of the part of a strip that begins at a column."""
    pointers, num_tensors, matrix, first_row, count, width = strip
    address = tl.load(pointers + column * num_tensors + matrix)
    if (CODE >> column) & 1:
        base = address.to(tl.pointer_type(tl.bfloat16))
    else:
        base = address.to(tl.pointer_type(tl.float32))
    if WIDE:
        base = tl.multiple_of(base, 16)
        width = width // 16 * 16
    rows, cols = tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
    mask = (rows < count)[:, None] & (cols < width)[None, :]
    return base + first_row * width + (rows[:, None] * width + cols[None, :]), mask


@triton.jit
def load_strip(
    strip,
    column: tl.constexpr,
    first_col,
    CODE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    addresses, mask = strip_addresses(strip, column, first_col, CODE, WIDE, ROWS, COLS)
    return tl.load(addresses, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def strip_vars(strip, COLUMNS: tl.constexpr):
    """Addresses of r and c of this program's matrix."""
    pointers, num_tensors, matrix = strip[0], strip[1], strip[2]
    row_var = tl.load(pointers + COLUMNS * num_tensors + matrix).to(tl.pointer_type(tl.float32))
    col_var = tl.load(pointers + (COLUMNS + 1) * num_tensors + matrix).to(tl.pointer_type(tl.float32))
    return row_var, col_var


@triton.jit
def weight_of_newest(step, one_minus_beta2, decay, POWER: tl.constexpr):
    """`decay` is log beta2, or the exponent if POWER."""
    if POWER:
        return tl.exp(tiles.f32(decay) * tl.log(step))
    else:
        return tiles.f32(one_minus_beta2) / tiles.bias_correction(step, tiles.f32(decay))


@triton.jit
def factored_update(strip, g, first_col, scale, COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """g / sqrt(r / mean r) / sqrt(c); `scale` is 1 / mean r. Of two dead rows and columns the product would underflow."""
    row_var, col_var = strip_vars(strip, COLUMNS)
    rows, cols = tl.arange(0, ROWS), first_col + tl.arange(0, COLS)
    r = tl.load(row_var + strip[3] + rows, mask=rows < strip[4], other=1.0)
    c = tl.load(col_var + cols, mask=cols < strip[5], other=1.0)
    return g * tl.rsqrt(r * scale)[:, None] * tl.rsqrt(c)[None, :]


# ---------------------------------------------------------------- the four kernels of a matrix


@triton.jit
def factor_rows_kernel(
    pointers, chunks, first_chunk, num_tensors, shapes, sums_start, column_sums, partials, grad_scale_ptr,
    one_minus_beta2, decay, POWER: tl.constexpr, SCALED: tl.constexpr, COLS: tl.constexpr, COLUMNS: tl.constexpr,
    CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Moves r on; leaves sums of g^2 over the strip's rows, the sum of its r, and if SCALED the sum of p^2."""
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS + 2)
    weight = weight_of_newest(step, one_minus_beta2, decay, POWER)
    matrix = tiles.my_tensor(chunks)
    number = tl.program_id(0) - tl.load(first_chunk + matrix)
    sums = column_sums + tl.load(sums_start + matrix) + number.to(tl.int64) * tl.load(shapes + 2 * matrix + 1)
    args = (tiles.optional_scale(grad_scale_ptr), weight, sums, partials, SCALED)
    run_strip(factor_rows, args, pointers, chunks, num_tensors, shapes, COLUMNS, CODES, BLOCK, COLS)


@triton.jit
def factor_rows(
    args, strip, COLUMNS: tl.constexpr, CODE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    scale, weight, sums, partials, SCALED = args
    width = strip[5]
    row_sums = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    for first_col in range(0, width, COLS):
        g = load_strip(strip, 1, first_col, CODE, WIDE, ROWS, COLS) * scale
        cols = first_col + tl.arange(0, COLS)
        tl.store(sums + cols, tl.sum(g * g, axis=0), mask=cols < width)
        row_sums += tl.sum(g * g, axis=1)
        if SCALED:
            p = load_strip(strip, 0, first_col, CODE, WIDE, ROWS, COLS)
            squares += tl.sum(p * p, axis=1)
    row_var, _ = strip_vars(strip, COLUMNS)
    rows = tl.arange(0, ROWS)
    mask = rows < strip[4]
    r = tl.load(row_var + strip[3] + rows, mask=mask, other=0.0)
    r = tl.where(mask, tiles.lerp(r, row_sums / width + 1e-30, weight), 0.0)
    tl.store(row_var + strip[3] + rows, r, mask=mask)
    tl.store(partials + tl.program_id(0), tl.sum(r))
    if SCALED:
        tl.store(partials + tl.num_programs(0) + tl.program_id(0), tl.sum(squares))


@triton.jit
def factor_columns_kernel(
    pointers, first_chunk, num_tensors, num_programs, shapes, sums_start, column_sums, partials, scales, sizes,
    one_minus_beta2, decay, POWER: tl.constexpr, SCALED: tl.constexpr, COLUMNS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Moves c on; leaves 1 / mean r in `scales` and in `sizes` max(1e-3, rms p) if SCALED, else 1."""
    matrix, first_col = tl.program_id(0), tl.program_id(1) * COLS
    height, width = tl.load(shapes + 2 * matrix), tl.load(shapes + 2 * matrix + 1)
    if first_col >= width:
        return
    step = tl.load(tl.load(pointers + (COLUMNS + 2) * num_tensors + matrix).to(tl.pointer_type(tl.float32)))
    weight = weight_of_newest(step, one_minus_beta2, decay, POWER)
    first, end = tl.load(first_chunk + matrix), tl.load(first_chunk + matrix + 1)
    cols = first_col + tl.arange(0, COLS)
    sums = column_sums + tl.load(sums_start + matrix) + cols
    total = tl.zeros([COLS], tl.float32)
    for number in range(0, end - first, 16):
        strips = number + tl.arange(0, 16)
        mask = (strips < end - first)[:, None] & (cols < width)[None, :]
        total += tl.sum(tl.load(sums[None, :] + strips.to(tl.int64)[:, None] * width, mask=mask, other=0.0), axis=0)
    col_var = tl.load(pointers + (COLUMNS + 1) * num_tensors + matrix).to(tl.pointer_type(tl.float32)) + cols
    c = tl.load(col_var, mask=cols < width, other=0.0)
    tl.store(col_var, tiles.lerp(c, total / height + 1e-30, weight), mask=cols < width)
    if first_col == 0:
        mean_r = tiles.sum_of(partials, first, end, 1024) / height
        tl.store(scales + matrix, 1.0 / mean_r)
        if SCALED:
            mean_square = tiles.sum_of(partials + num_programs, first, end, 1024) / height / width
            tl.store(sizes + matrix, tl.maximum(tl.sqrt(mean_square), 1e-3))
        else:
            tl.store(sizes + matrix, 1.0)


@triton.jit
def factor_size_kernel(
    pointers, chunks, first_chunk, num_tensors, shapes, partials, arrivals, scales, sizes, lr_ptr, grad_scale_ptr, clip,
    COLS: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns `sizes` into step sizes: times lr / max(1, rms u / clip)."""
    matrix = tiles.my_tensor(chunks)
    args = (tiles.optional_scale(grad_scale_ptr), tl.load(scales + matrix), partials)
    run_strip(factor_size, args, pointers, chunks, num_tensors, shapes, COLUMNS, CODES, BLOCK, COLS)
    if tiles.is_last_of_tensor(arrivals, chunks, first_chunk):
        height, width = tl.load(shapes + 2 * matrix), tl.load(shapes + 2 * matrix + 1)
        rms = tl.sqrt(tiles.sum_of_tensor(partials, chunks, first_chunk, 1024) / height / width)
        lr = tl.load(lr_ptr).to(tl.float32)
        tl.store(sizes + matrix, tl.load(sizes + matrix) * lr / tl.maximum(rms / tiles.f32(clip), 1.0))


@triton.jit
def factor_size(
    args, strip, COLUMNS: tl.constexpr, CODE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    grad_scale, scale, partials = args
    squares = tl.zeros([ROWS], tl.float32)
    for first_col in range(0, strip[5], COLS):
        g = load_strip(strip, 1, first_col, CODE, WIDE, ROWS, COLS) * grad_scale
        u = factored_update(strip, g, first_col, scale, COLUMNS, ROWS, COLS)
        squares += tl.sum(u * u, axis=1)
    tl.store(partials + tl.program_id(0), tl.sum(squares))


@triton.jit
def factor_apply_kernel(
    pointers, chunks, first_chunk, num_tensors, shapes, scales, sizes, lr_ptr, grad_scale_ptr, one_minus_beta1,
    weight_decay, COLS: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    matrix = tiles.my_tensor(chunks)
    args = (
        tiles.optional_scale(grad_scale_ptr), tl.load(scales + matrix), tl.load(sizes + matrix),
        tiles.f32(one_minus_beta1), 1.0 - tl.load(lr_ptr).to(tl.float32) * tiles.f32(weight_decay),
    )  # fmt: skip
    run_strip(factor_apply, args, pointers, chunks, num_tensors, shapes, COLUMNS, CODES, BLOCK, COLS)


@triton.jit
def factor_apply(
    args, strip, COLUMNS: tl.constexpr, CODE: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    grad_scale, scale, step_size, one_minus_beta1, decay = args
    for first_col in range(0, strip[5], COLS):
        g = load_strip(strip, 1, first_col, CODE, WIDE, ROWS, COLS) * grad_scale
        d = factored_update(strip, g, first_col, scale, COLUMNS, ROWS, COLS) * step_size
        if COLUMNS == 3:
            addresses, mask = strip_addresses(strip, 2, first_col, CODE, WIDE, ROWS, COLS)
            m = tl.load(addresses, mask=mask, other=0.0).to(tl.float32)
            d = tiles.lerp(m, d, one_minus_beta1)
            tl.store(addresses, d.to(addresses.dtype.element_ty), mask=mask)
        addresses, mask = strip_addresses(strip, 0, first_col, CODE, WIDE, ROWS, COLS)
        p = tl.load(addresses, mask=mask, other=0.0).to(tl.float32)
        tl.store(addresses, (p * decay - d).to(addresses.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------- vectors


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
    table: launch.TensorTable | None = None,
) -> None:
    """As in `reference.py`. `table` keeps what is known of the tensors from one update to the next."""
    columns = (params, grads, variances, exp_avgs) if exp_avgs else (params, grads, variances)
    table = launch.refreshed(table, *columns, extras=(steps,))
    partials, arrivals, sizes = table.workspace(2)
    lr = launch.beside(lr, params)
    table.launch(
        vector_moments_kernel, partials, arrivals, sizes, lr, grad_scale, 1 - beta2,
        log_beta(beta2) if decay_rate is None else decay_rate, clip, POWER=decay_rate is not None, SCALED=scale_parameter,
    )  # fmt: skip
    table.launch(vector_apply_kernel, sizes, lr, grad_scale, 1 - beta1, weight_decay)


@triton.jit
def vector_moments_kernel(
    pointers, chunks, first_chunk, num_tensors, partials, arrivals, sizes, lr_ptr, grad_scale_ptr, one_minus_beta2,
    decay, clip, POWER: tl.constexpr, SCALED: tl.constexpr, COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Moves v on, and leaves the step size of every tensor in `sizes`."""
    step = tiles.my_extra(pointers, chunks, num_tensors, COLUMNS)
    weight = weight_of_newest(step, one_minus_beta2, decay, POWER)
    scalars = (tiles.optional_scale(grad_scale_ptr), weight)
    READS: tl.constexpr = (1, 2, 0) if SCALED else (1, 2)
    SUMS: tl.constexpr = 2 if SCALED else 1
    tiles.update_tile(
        vector_moments, scalars, pointers, chunks, num_tensors, READS, (2,), COLUMNS, CODES, BLOCK, partials, SUMS=SUMS
    )
    if tiles.is_last_of_tensor(arrivals, chunks, first_chunk):
        size = tiles.size_of_tensor(chunks, first_chunk, BLOCK).to(tl.float32)
        rms_u = tl.sqrt(tiles.sum_of_tensor(partials, chunks, first_chunk, BLOCK) / size)
        step_size = tl.load(lr_ptr).to(tl.float32) / tl.maximum(rms_u / tiles.f32(clip), 1.0)
        if SCALED:
            rms_p = tl.sqrt(tiles.sum_of_tensor(partials + tl.num_programs(0), chunks, first_chunk, BLOCK) / size)
            step_size *= tl.maximum(rms_p, 1e-3)
        tl.store(sizes + tiles.my_tensor(chunks), step_size)


@triton.jit
def vector_moments(values, scalars):
    scale, weight = scalars
    g = values[0] * scale
    v = tiles.lerp(values[1], g * g + 1e-30, weight)
    u = g * tl.rsqrt(v)
    if len(values) == 3:
        return v, u * u, values[2] * values[2]
    else:
        return v, u * u


@triton.jit
def vector_apply_kernel(
    pointers, chunks, first_chunk, num_tensors, sizes, lr_ptr, grad_scale_ptr, one_minus_beta1, weight_decay,
    COLUMNS: tl.constexpr, CODES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scalars = (
        tiles.optional_scale(grad_scale_ptr), tl.load(sizes + tiles.my_tensor(chunks)),
        tiles.f32(one_minus_beta1), 1.0 - tl.load(lr_ptr).to(tl.float32) * tiles.f32(weight_decay),
    )  # fmt: skip
    READS: tl.constexpr = (0, 1, 2, 3) if COLUMNS == 4 else (0, 1, 2)
    tiles.update_tile(vector_apply, scalars, pointers, chunks, num_tensors, READS, (0, 3), COLUMNS, CODES, BLOCK)


@triton.jit
def vector_apply(values, scalars):
    scale, step_size, one_minus_beta1, decay = scalars
    d = values[1] * scale * tl.rsqrt(values[2]) * step_size
    if len(values) == 4:
        m = tiles.lerp(values[3], d, one_minus_beta1)
        return values[0] * decay - m, m
    else:
        return (values[0] * decay - d,)
