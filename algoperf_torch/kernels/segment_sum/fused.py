"""Sums of the rows of each segment, always added in the same order: results are equal to the last bit in every run.

The rows, taken by segment, are cut into chunks of equal length, so that a segment of half of all rows does not wait for one
program. A program adds up the segments inside its chunk. Of a segment that crosses a border it leaves a partial sum: in
`heads` for the segment that entered it, in `tails` for the one that leaves it; a second kernel puts these together.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from algoperf_torch.kernels import launch

CHUNK = 64  # rows
WIDTH = 128  # columns of a program
GROUP = 16  # partial sums that are added at a time


def segment_sum(values: Tensor, segments: Tensor, num_segments: int, order: Tensor | None = None) -> Tensor:
    """As in `reference.py`; sums in float32. Segments that are not in order give NaN."""
    rows, width = values.shape
    result = torch.zeros(num_segments, width, dtype=values.dtype, device=values.device)
    chunks, parts = triton.cdiv(rows, CHUNK), triton.cdiv(width, WIDTH)
    heads, tails = (torch.empty(chunks, width, dtype=torch.float32, device=values.device) for _ in range(2))
    common = (values, segments, order, heads, tails, result, rows, width, num_segments)
    block = min(WIDTH, max(16, int(triton.next_power_of_2(width))))
    launch.launch(chunk_kernel, (chunks, parts), *common, CHUNK=CHUNK, WIDTH=block, num_warps=1)
    launch.launch(border_kernel, (chunks, parts), *common, CHUNK=CHUNK, WIDTH=block, GROUP=GROUP, num_warps=1)
    return result


@triton.jit
def segment_at(segments, order, position):
    if order is not None:
        position = tl.load(order + position)
    return tl.load(segments + position)


@triton.jit
def chunk_kernel(
    values, segments, order, heads, tails, result, rows, width, num_segments, CHUNK: tl.constexpr, WIDTH: tl.constexpr
):
    chunk = tl.program_id(0)
    first, end = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, rows)
    cols = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = cols < width
    entered = segment_at(segments, order, tl.maximum(first - 1, 0))
    current = segment_at(segments, order, first)
    enters = (first > 0) & (entered == current)
    total = tl.zeros([WIDTH], tl.float32)
    if (first > 0) & (entered > current):
        total += float("nan")
    for position in range(first, end):
        row = tl.cast(position, tl.int64)
        if order is not None:
            row = tl.load(order + position).to(tl.int64)
        segment = tl.load(segments + row)
        if segment != current:
            if enters:
                tl.store(heads + chunk.to(tl.int64) * width + cols, total, mask=inside)
            elif (current >= 0) & (current < num_segments):
                tl.store(result + current.to(tl.int64) * width + cols, total, mask=inside)
            total = tl.zeros([WIDTH], tl.float32)
            if segment < current:
                total += float("nan")
            current = segment
            enters = False
        total += tl.load(values + row * width + cols, mask=inside, other=0.0).to(tl.float32)
    leaves = False
    if end < rows:
        leaves = segment_at(segments, order, end) == current
    if enters:  # the whole chunk may lie inside one segment: it is then a part of what entered
        tl.store(heads + chunk.to(tl.int64) * width + cols, total, mask=inside)
    elif leaves:
        tl.store(tails + chunk.to(tl.int64) * width + cols, total, mask=inside)
    elif (current >= 0) & (current < num_segments):
        tl.store(result + current.to(tl.int64) * width + cols, total, mask=inside)


@triton.jit
def border_kernel(
    values, segments, order, heads, tails, result, rows, width, num_segments, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Adds up a segment that begins in this chunk and ends in a later one."""
    chunk = tl.program_id(0)
    first, end = chunk * CHUNK, chunk * CHUNK + CHUNK
    if end >= rows:
        return
    segment = segment_at(segments, order, end - 1)
    if segment_at(segments, order, end) != segment:
        return
    if (first > 0) & (segment_at(segments, order, tl.maximum(first - 1, 0)) == segment):
        return  # it began before this chunk
    if (segment < 0) | (segment >= num_segments):
        return
    cols = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = cols < width
    total = tl.load(tails + chunk.to(tl.int64) * width + cols, mask=inside, other=0.0)
    next_chunk = chunk + 1
    going = True
    while going:
        chunks = next_chunk + tl.arange(0, GROUP)
        starts = chunks.to(tl.int64) * CHUNK
        exists = starts < rows
        position = starts
        if order is not None:
            position = tl.load(order + starts, mask=exists, other=0).to(tl.int64)
        belongs = exists & (tl.load(segments + position, mask=exists, other=-1) == segment)
        part = heads + chunks.to(tl.int64)[:, None] * width + cols[None, :]
        total += tl.sum(tl.load(part, mask=belongs[:, None] & inside[None, :], other=0.0), axis=0)
        next_chunk += GROUP
        going = tl.sum(belongs.to(tl.int32)) == GROUP
    tl.store(result + segment.to(tl.int64) * width + cols, total, mask=inside)
