"""Batches of packed rows for training, of padded sentences for evaluation."""

from __future__ import annotations

import numpy as np
import torch

from algoperf_torch.data.packed import Packed, Ragged
from algoperf_torch.errors import UsageError
from algoperf_torch.spec import Batch, Split
from algoperf_torch.workloads.wmt.packing import Index, Pairs, RowOrder


def load_pairs(packed: Packed, split: Split) -> Pairs:
    """All pairs of a split."""
    (part,) = packed.split(split).parts
    return Pairs(part.ragged("source"), part.ragged("target"), part.array("source_count"), part.array("target_count"))


def fitting(pairs: Pairs, length: int) -> Index:
    """Numbers of the pairs that have at most `length` tokens on both sides."""
    return np.flatnonzero((pairs.source.lengths <= length) & (pairs.target.lengths <= length))


class RowStream:
    """This rank's share of each global batch of packed rows; the incomplete last batch of an epoch is dropped.

    Epochs go over all pairs in an order that depends on (seed, epoch). How many rows an epoch has follows from its order, so
    a draw far ahead asks for the orders of all epochs before it (about a second each at full size).
    """

    def __init__(
        self, pairs: Pairs, usable: Index, length: int, global_batch_size: int, *, seed: int, rank: int, world_size: int
    ) -> None:
        if global_batch_size % world_size:
            raise UsageError(
                f"Global batch size {global_batch_size} is not divisible by {world_size} ranks; use a multiple."
            )
        self._pairs, self._usable, self._length, self._seed = pairs, usable, length, seed
        self._global_batch_size = global_batch_size
        self._local_batch_size = global_batch_size // world_size
        self._offset = rank * self._local_batch_size
        self._first_draw = [0]  # of each epoch that was looked at, and of the next
        self._epoch = -1
        self._rows = self._load(0)
        if self._first_draw[1] == 0:
            raise UsageError(
                f"Global batch size {global_batch_size} must be between 1 and the {self._rows.num_rows} packed rows "
                "of an epoch."
            )

    def _load(self, epoch: int) -> RowOrder:
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[self._seed % 2**64, epoch]))
            self._rows = RowOrder(self._pairs, self._usable[random.permutation(len(self._usable))], self._length)
            self._epoch = epoch
        if epoch == len(self._first_draw) - 1:
            self._first_draw.append(self._first_draw[epoch] + self._rows.num_rows // self._global_batch_size)
        return self._rows

    def __call__(self, draw: int) -> Batch:
        while self._first_draw[-1] <= draw:
            self._load(len(self._first_draw) - 1)
        epoch = int(np.searchsorted(self._first_draw, draw, side="right")) - 1
        start = (draw - self._first_draw[epoch]) * self._global_batch_size + self._offset
        return self._load(epoch).rows(start, start + self._local_batch_size)


def padded(pairs: Pairs, chosen: Index, length: int) -> Batch:
    """Whole sentences, zero padded: inputs, targets and weights int64 [n, length]."""
    inputs, targets = (pad_side(sentences, chosen, length) for sentences in (pairs.source, pairs.target))
    return {
        "inputs": torch.from_numpy(inputs),
        "targets": torch.from_numpy(targets),
        "weights": torch.from_numpy((targets > 0).astype(np.int64)),
    }


def pad_side(sentences: Ragged, chosen: Index, length: int) -> Index:
    tokens = np.zeros((len(chosen), length), dtype=np.int64)
    for row, number in zip(tokens, chosen, strict=True):
        found = sentences[number]
        row[: len(found)] = found
    return tokens
