"""The seeds of a trial, as the rules define them: a splittable generator on top of numpy's legacy one.

One run seed (`--seed`) gives every trial of a benchmark its own trial seed; a trial seed gives four seeds (data,
optimizer, model, loop); the loop seed gives the seeds of every step. All are pairs of whole numbers. The arithmetic is
AlgoPerf's, so that equal trial seeds mean equal seeds everywhere below; how trial seeds are drawn is ours (AlgoPerf
reused one seed for many trials).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from algoperf_torch.spec import Ruleset

MODULUS = 2**31 - 1  # a prime; `draw_trial_seed` needs that
MAX_TRIALS = 1000  # per study

Seed = int | Sequence[int]
SeedPair = tuple[int, int]


class TrialSeeds(NamedTuple):
    """The four seeds of a trial."""

    data: SeedPair
    optimizer: SeedPair
    model: SeedPair
    loop: SeedPair

    @classmethod
    def derive(cls, trial_seed: int, ruleset: Ruleset) -> TrialSeeds:
        """The four seeds of a trial seed; the external ruleset splits once more on the way, as AlgoPerf does."""
        seed = key(trial_seed)
        if ruleset is Ruleset.EXTERNAL:
            seed = split(seed, 2)[0]
        return cls(*split(seed, 4))


def reduce(seed: Seed) -> int | list[int]:
    """Every component modulo 2^31 - 1; never negative."""
    if isinstance(seed, Sequence):
        return [int(part) % MODULUS for part in seed]
    return int(seed) % MODULUS


def split(seed: Seed, n: int = 2) -> list[SeedPair]:
    """`n` new seeds."""
    draws = np.random.RandomState(reduce(seed)).randint(0, MODULUS, size=(n, 2), dtype=np.int32)
    return [(int(first), int(second)) for first, second in draws]


def key(seed: Seed) -> SeedPair:
    """The seed pair that stands for a single number."""
    return split(seed, 2)[0]


def fold_in(seed: Seed, number: int) -> SeedPair:
    """A seed for `number`, for example a step; the number itself is the second component, not reduced."""
    return int(np.random.RandomState(reduce(seed)).randint(0, MODULUS, dtype=np.int32)), number


def step_seeds(loop: Seed, step: int, n: int) -> list[SeedPair]:
    """The `n` seeds of step `step` (from 0): data selection, update, (4 only: preparation,) evaluation."""
    return split(fold_in(loop, step), n)


def draw_run_seed() -> int:
    """A run seed from the operating system, below 2^32; the caller records it."""
    return secrets.randbits(32)


def draw_trial_seed(run_seed: int, *, workload: str, study: int, trial: int) -> int:
    """The trial seed, in [0, 2^31 - 1), of one trial (from 1) of a study (from 0) under a run seed (any whole number).

    Distinct for all trials of a workload by construction: a fixed multiple of the trial's position plus an offset that
    depends on the run seed and the workload, modulo a prime. Two submissions under one run seed share their trials'
    seeds: they see the same data order and the same initial weights, which makes their difference less noisy.

    Raises `ValueError` for a position that does not exist.
    """
    if not (0 <= study <= MODULUS // MAX_TRIALS - 1 and 1 <= trial <= MAX_TRIALS):
        raise ValueError(f"No trial {trial=} of {study=}: studies count from 0, trials from 1 to {MAX_TRIALS}.")
    offset = hashlib.sha256(f"{run_seed} {workload}".encode()).digest()
    position = study * MAX_TRIALS + trial - 1
    return (int.from_bytes(offset, "big") + position * 0x2545F491) % MODULUS
