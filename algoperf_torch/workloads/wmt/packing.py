"""Several sentence pairs in one row, so that little of a training batch is padding.

Pairs are handled in groups of `length` consecutive ones. Within a group, rows are filled in order: a pair goes into the
current row if both of its sides still fit, else it begins the next row. A row never holds pairs of two groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from algoperf_torch.data.packed import Ragged
from algoperf_torch.spec import Batch

Index = NDArray[np.int64]


class Pairs(NamedTuple):
    """Token ids of all pairs of a split. Only the first `*_count` tokens of a sentence go into a packed row.

    The count is the number of tokens that are not 0: an unknown piece, which shares 0 with padding, shortens its sentence.
    """

    source: Ragged
    target: Ragged
    source_count: NDArray[np.integer[Any]]
    target_count: NDArray[np.integer[Any]]


def first_in_row(source_count: Index, target_count: Index, length: int) -> NDArray[np.bool_]:
    """bool [pairs]: whether a pair begins a row, when pairs are packed in the order given.

    All groups are filled side by side: one step for each place within a group.
    """
    num_pairs = len(source_count)
    groups = -(-num_pairs // length)
    sides = np.zeros((2, groups * length), dtype=np.int64)
    sides[0, :num_pairs], sides[1, :num_pairs] = source_count, target_count
    by_place = np.ascontiguousarray(sides.reshape(2, groups, length).transpose(2, 0, 1))  # [place, side, group]
    begins = np.zeros((length, groups), dtype=np.bool_)
    used = np.full((2, groups), length, dtype=np.int64)  # full: the first pair of a group begins a row
    for place, counts in enumerate(by_place):
        new = ((used + counts) > length).any(axis=0)
        new |= place == 0
        used = np.where(new, counts, used + counts)
        begins[place] = new
    return begins.T.reshape(-1)[:num_pairs]


class RowOrder:
    """The rows of one epoch: its pairs in order, and where each row begins among them."""

    def __init__(self, pairs: Pairs, order: Index, length: int) -> None:
        self._pairs, self._order, self._length = pairs, order, length
        source, target = pairs.source_count[order], pairs.target_count[order]
        begins = first_in_row(source.astype(np.int64), target.astype(np.int64), length)
        self._bounds = np.append(np.flatnonzero(begins), len(order))

    @property
    def num_rows(self) -> int:
        return len(self._bounds) - 1

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` as a batch: tokens, positions and segments of both sides int64 [n, length], weights."""
        bounds = self._bounds[start : stop + 1]
        chosen = self._order[bounds[0] : bounds[-1]]
        row = np.repeat(np.arange(stop - start), np.diff(bounds))
        pairs = self._pairs
        source = pack_side(pairs.source, chosen, pairs.source_count[chosen].astype(np.int64), row, self._length)
        target = pack_side(pairs.target, chosen, pairs.target_count[chosen].astype(np.int64), row, self._length)
        batch = {}
        for name, arrays in (("inputs", source), ("targets", target)):
            for suffix, array in zip(("", "_position", "_segmentation"), arrays, strict=True):
                batch[name + suffix] = torch.from_numpy(array)
        batch["weights"] = torch.from_numpy((target[0] > 0).astype(np.int64))
        return batch


def pack_side(sentences: Ragged, chosen: Index, counts: Index, row: Index, length: int) -> tuple[Index, Index, Index]:
    """Tokens, positions and segments [rows, length] of the first `counts` tokens of the chosen sentences.

    `row` [len(chosen)] says which row each goes to, in ascending order.
    """
    num_rows = int(row[-1]) + 1
    before = np.cumsum(counts) - counts  # tokens in front of each sentence
    row_start = before[np.searchsorted(row, np.arange(num_rows))]
    column = before - row_start[row]
    position = np.arange(counts.sum()) - np.repeat(before, counts)
    tokens, positions = np.zeros((2, num_rows, length), dtype=np.int64)
    place = np.repeat(row * length + column, counts) + position
    tokens.reshape(-1)[place] = sentences.values.take(np.repeat(sentences.offsets[chosen], counts) + position)
    positions.reshape(-1)[place] = position
    segments = np.cumsum(positions == 0, axis=1) * (tokens != 0)
    return tokens, positions, segments
