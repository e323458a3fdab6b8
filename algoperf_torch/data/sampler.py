"""Which examples make up global batch number `draw`: a function of (seed, draw), the same on every rank."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.errors import UsageError

ScalarT = TypeVar("ScalarT", bound=np.generic)

# The second word of the key: epochs count from 0, below these.
_SUBSET = 2**63 - 1
_AUGMENTATION = 2**63


def keyed_generator(seed: int, number: int) -> np.random.Generator:
    """Random numbers of their own for every (seed, number), both taken modulo 2^64.

    The key must be an array of unsigned words: NumPy turns a list with a number of 2^63 or more into floats, which makes
    neighbouring keys equal.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, number % 2**64], dtype=np.uint64)))


class EpochSampler:
    """Shuffled epochs without replacement; the incomplete last batch of an epoch is dropped.

    `indices(draw)` gives this rank's part of the global batch: positions `rank * b` to `(rank + 1) * b` of it, with
    `b = global_batch_size / world_size`. Nothing is remembered but the last permutation, so any draw can be asked for.

    Raises `UsageError` where the batch is larger than the split or not divisible by the number of ranks.
    """

    def __init__(
        self, num_examples: int, global_batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if global_batch_size % world_size:
            raise UsageError(
                f"Global batch size {global_batch_size} is not divisible by {world_size} ranks; use a multiple."
            )
        if not 0 < global_batch_size <= num_examples:
            raise UsageError(
                f"Global batch size {global_batch_size} must be between 1 and the {num_examples} training examples."
            )
        self._num_examples = num_examples
        self.global_batch_size = global_batch_size
        self._local_batch_size = global_batch_size // world_size
        self._offset = rank * self._local_batch_size
        self._seed = seed
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def draws_per_epoch(self) -> int:
        return self._num_examples // self.global_batch_size

    def indices(self, draw: int) -> NDArray[np.int64]:
        """int64 [global_batch_size / world_size], this rank's examples of global batch `draw`."""
        epoch, batch = divmod(draw, self.draws_per_epoch)
        if epoch != self._epoch:
            self._permutation = keyed_generator(self._seed, epoch).permutation(self._num_examples)
            self._epoch = epoch
        start = batch * self.global_batch_size + self._offset
        return self._permutation[start : start + self._local_batch_size]

    def generator(self, draw: int) -> np.random.Generator:
        """Random numbers for the augmentation of global batch `draw`.

        The same on every rank: draw for the whole global batch, then take `local(values)`.
        """
        return keyed_generator(self._seed, _AUGMENTATION + draw)

    def local(self, values: NDArray[ScalarT]) -> NDArray[ScalarT]:
        """The rank's part of an array whose first dimension runs over the global batch."""
        return values[self._offset : self._offset + self._local_batch_size]


def subset(num_examples: int, size: int, *, seed: int) -> NDArray[np.int64]:
    """int64 [size]: a random sample without replacement, in random order; a function of its arguments."""
    if not 0 < size <= num_examples:
        raise UsageError(f"Cannot draw {size} of {num_examples} examples without replacement.")
    return keyed_generator(seed, _SUBSET).permutation(num_examples)[:size]
