"""Batches of consecutive log lines out of the packed arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algoperf_torch.data.packed import PackedSplit
from algoperf_torch.errors import UsageError


class PieceOrder:
    """The lines of a split with its pieces of `piece_lines` consecutive lines in a shuffled order.

    Pieces end with the part (the day) that holds them. The order depends on (seed, epoch) alone.
    """

    def __init__(self, split: PackedSplit, piece_lines: int) -> None:
        self._split = split
        bounds = [
            np.arange(begin, end, piece_lines) for begin, end in zip(split.starts[:-1], split.starts[1:], strict=True)
        ]
        self._starts = np.concatenate(bounds)
        self._lengths = np.diff(np.append(self._starts, split.num_examples))
        self._key: tuple[int, int] | None = None
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._ends: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def lines(self, start: int, stop: int, *, seed: int, epoch: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Inputs [n, 39] and labels [n] of lines `start` to `stop` of the shuffled order. Touches only these lines."""
        if self._key != (seed, epoch):
            random = np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch]))
            self._order = random.permutation(len(self._starts))
            self._ends = self._lengths[self._order].cumsum()
            self._key = (seed, epoch)
        inputs, labels = [], []
        place = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            piece, end = self._order[place], int(self._ends[place])
            length = min(stop, end) - start
            first = int(self._starts[piece] + self._lengths[piece]) - (end - start)
            inputs.append(self._split.read("inputs", first, first + length))
            labels.append(self._split.read("labels", first, first + length))
            start, place = start + length, place + 1
        return _joined(inputs), _joined(labels)


def _joined(pieces: list[NDArray[Any]]) -> NDArray[Any]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def to_batch(inputs: NDArray[np.float32], labels: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Inputs float32 [n, 39], which are not copied, and targets float32 [n, 1]."""
    return {
        "inputs": torch.from_numpy(inputs),
        "targets": torch.from_numpy(labels.astype(np.float32)).unsqueeze(1),
    }


class ClickStream:
    """This rank's share of each global batch: a run of consecutive lines; the incomplete last batch is dropped."""

    def __init__(
        self, order: PieceOrder, num_examples: int, global_batch_size: int, *, seed: int, rank: int, world_size: int
    ) -> None:
        if global_batch_size % world_size:
            raise UsageError(
                f"Global batch size {global_batch_size} is not divisible by {world_size} ranks; use a multiple."
            )
        if not 0 < global_batch_size <= num_examples:
            raise UsageError(
                f"Global batch size {global_batch_size} must be between 1 and the {num_examples} training examples."
            )
        self._order = order
        self._seed = seed
        self._global_batch_size = global_batch_size
        self._local_batch_size = global_batch_size // world_size
        self._offset = rank * self._local_batch_size
        self._draws_per_epoch = num_examples // global_batch_size

    def __call__(self, draw: int) -> dict[str, Tensor]:
        epoch, batch = divmod(draw, self._draws_per_epoch)
        start = batch * self._global_batch_size + self._offset
        lines = self._order.lines(start, start + self._local_batch_size, seed=self._seed, epoch=epoch)
        return {**to_batch(*lines), "weights": torch.ones(self._local_batch_size)}
