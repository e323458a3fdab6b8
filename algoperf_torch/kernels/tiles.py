"""The device side of multi-tensor kernels: a program finds its tile in a `launch.TensorTable`, computes, stores.

`update_tile` does all but the arithmetic, which is a function (values, scalars) -> results on tiles in float32. A tile that
is full and whose addresses are multiples of 16 bytes is read and written unmasked, in 128-bit words; others are masked.
"""

import triton
import triton.language as tl


@triton.jit
def update_tile(
    ARITHMETIC: tl.constexpr,
    scalars,
    pointers,
    chunks,
    num_tensors,
    READS: tl.constexpr,  # columns that are given to ARITHMETIC
    WRITES: tl.constexpr,  # columns that its results go to
    COLUMNS: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK: tl.constexpr,
    partials=None,  # [SUMS, programs]: where the sums over the tile of the last SUMS results go
    SUMS: tl.constexpr = 0,
):
    """Runs ARITHMETIC on the tile of this program."""
    tensor, start, count, code = locate(chunks, BLOCK)
    full = (count == BLOCK) & is_aligned(pointers, num_tensors, tensor, COLUMNS)
    where = (pointers, num_tensors, tensor, start, count)
    for i in tl.static_range(len(CODES)):
        if code == i:
            if full:
                _run(ARITHMETIC, scalars, where, partials, READS, WRITES, SUMS, CODES[i], True, BLOCK)
            else:
                _run(ARITHMETIC, scalars, where, partials, READS, WRITES, SUMS, CODES[i], False, BLOCK)


@triton.jit
def _run(
    ARITHMETIC: tl.constexpr,
    scalars,
    where,
    partials,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    SUMS: tl.constexpr,
    CODE: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    values = ()
    for i in tl.static_range(len(READS)):
        values = values + (_load(where, READS[i], CODE, FULL, BLOCK),)  # type: ignore[assignment]
    results = ARITHMETIC(values, scalars)
    for i in tl.static_range(len(results) - SUMS):
        _store(where, WRITES[i], results[i], CODE, FULL, BLOCK)
    for i in tl.static_range(SUMS):
        total = tl.sum(results[len(results) - SUMS + i])
        tl.store(partials + i * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def locate(chunks, BLOCK: tl.constexpr):
    """(tensor, first element, number of elements, code) of this program."""
    record = chunks + 4 * tl.program_id(0)
    start = tl.load(record + 1).to(tl.int64) * BLOCK
    return tl.load(record), start, tl.load(record + 2), tl.load(record + 3)


@triton.jit
def is_aligned(pointers, num_tensors, tensor, COLUMNS: tl.constexpr):
    """Whether 128-bit words can be read from all columns."""
    bits = tl.load(pointers + tensor)
    for column in tl.static_range(1, COLUMNS):
        bits |= tl.load(pointers + column * num_tensors + tensor)
    return (bits & 15) == 0


@triton.jit
def _addresses(where, column: tl.constexpr, CODE: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr):
    pointers, num_tensors, tensor, start, _count = where
    address = tl.load(pointers + column * num_tensors + tensor)
    if (CODE >> column) & 1:
        base = address.to(tl.pointer_type(tl.bfloat16))
    else:
        base = address.to(tl.pointer_type(tl.float32))
    if FULL:
        base = tl.multiple_of(base, 16)
    return base + start + tl.arange(0, BLOCK)


@triton.jit
def _load(where, column: tl.constexpr, CODE: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr):
    tile = _addresses(where, column, CODE, FULL, BLOCK)
    if FULL:
        return tl.load(tile).to(tl.float32)
    else:
        return tl.load(tile, mask=tl.arange(0, BLOCK) < where[4], other=0.0).to(tl.float32)


@triton.jit
def _store(where, column: tl.constexpr, value, CODE: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr):
    tile = _addresses(where, column, CODE, FULL, BLOCK)
    if FULL:
        tl.store(tile, value.to(tile.dtype.element_ty))
    else:
        tl.store(tile, value.to(tile.dtype.element_ty), mask=tl.arange(0, BLOCK) < where[4])


# ---------------------------------------------------------------- scalars


@triton.jit
def f32(x):
    """A number of the launch in float32: Inductor hands Python floats over as float64, which would promote the arithmetic."""
    return tl.cast(x, tl.float32)


@triton.jit
def lerp(a, b, weight):
    """a + weight (b - a), exactly b at weight 1, as `torch.lerp`."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - (b - a) * (1.0 - weight))


@triton.jit
def my_tensor(chunks):
    """The number of this program's tensor."""
    return tl.load(chunks + 4 * tl.program_id(0))


@triton.jit
def my_extra(pointers, chunks, num_tensors, ROW: tl.constexpr):
    """The 0-d extra of this program's tensor whose address stands in a row below the table's columns."""
    return tl.load(my_address(pointers, chunks, num_tensors, ROW))


@triton.jit
def my_address(pointers, chunks, num_tensors, ROW: tl.constexpr):
    """The address of such an extra, which is float32."""
    return tl.load(pointers + ROW * num_tensors + my_tensor(chunks)).to(tl.pointer_type(tl.float32))


@triton.jit
def optional_scale(pointer):
    """The scalar behind a pointer that may be None: then 1."""
    if pointer is not None:
        return tl.load(pointer).to(tl.float32)
    else:
        return 1.0


@triton.jit
def bias_correction(step, log_beta):
    """1 - beta ** step in float32, without the cancellation that costs four digits at step 1 for beta = 0.9999."""
    x = step * log_beta
    small = tl.maximum(x, -0.3)
    series = 1.0 + small / 9.0
    for k in tl.static_range(8, 1, -1):
        series = 1.0 + small / k * series
    return tl.where(x > -0.3, -small * series, 1.0 - tl.exp(x))


# ---------------------------------------------------------------- sums over the programs of a launch


@triton.jit
def is_last_of_tensor(arrivals, chunks, first_chunk):
    """Whether all other programs of this program's tensor have been here; what they stored before can then be read."""
    tensor = my_tensor(chunks)
    return is_last(arrivals + tensor, tl.load(first_chunk + tensor + 1) - tl.load(first_chunk + tensor))


@triton.jit
def is_last(counter, expected):
    """Whether this program is the last of `expected` to come here. The last one sets the counter back to 0."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def sum_of_tensor(partials, chunks, first_chunk, BLOCK: tl.constexpr):
    """The sum of one row of partials over this program's tensor, in a fixed order."""
    tensor = my_tensor(chunks)
    return sum_of(partials, tl.load(first_chunk + tensor), tl.load(first_chunk + tensor + 1), BLOCK)


@triton.jit
def size_of_tensor(chunks, first_chunk, BLOCK: tl.constexpr):
    """Number of elements of this program's tensor."""
    tensor = my_tensor(chunks)
    last = tl.load(first_chunk + tensor + 1) - 1
    return tl.load(chunks + 4 * last + 1).to(tl.int64) * BLOCK + tl.load(chunks + 4 * last + 2)


@triton.jit
def sum_of(partials, first, end, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(first, end, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        total += tl.load(partials + offsets, mask=offsets < end, other=0.0, cache_modifier=".cg")
    return tl.sum(total)
