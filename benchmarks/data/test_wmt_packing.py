"""Packed translation batches: whole epochs at once with NumPy against one pair at a time in Python.

Run: `python -m pytest --benchmark-only benchmarks/data/test_wmt_packing.py -s`.
"""

from __future__ import annotations

import numpy as np
import torch

from algoperf_torch.data.packed import Ragged
from algoperf_torch.workloads.wmt.data import RowStream
from algoperf_torch.workloads.wmt.packing import Pairs

PAIRS, LENGTH, BATCH = 40_000, 256, 128
NAMES = ("inputs", "inputs_position", "inputs_segmentation", "targets", "targets_position", "targets_segmentation")
GOAL = 5.0


def sentences(random: np.random.Generator) -> Ragged:
    """Lengths like those of the corpora: about 30 tokens, with a long tail."""
    lengths = np.clip(random.lognormal(3.2, 0.7, size=PAIRS), 2, LENGTH).astype(np.int64)
    return Ragged(random.integers(3, 32_000, size=lengths.sum()).astype(np.uint16), np.append(0, lengths.cumsum()))


def python_batches(pairs: Pairs, order: np.ndarray):
    rows: list[dict[str, list[int]]] = []
    row: dict[str, list[int]] = {name: [] for name in NAMES}
    segment = 0
    for place, number in enumerate(order):
        source, target = pairs.source[number].tolist(), pairs.target[number].tolist()
        full = len(row["inputs"]) + len(source) > LENGTH or len(row["targets"]) + len(target) > LENGTH
        if segment and (full or place % LENGTH == 0):
            rows.append(row)
            row, segment = {name: [] for name in NAMES}, 0
            if len(rows) == BATCH:
                yield as_batch(rows)
                rows = []
        segment += 1
        for name, tokens in (("inputs", source), ("targets", target)):
            row[name] += tokens
            row[f"{name}_position"] += range(len(tokens))
            row[f"{name}_segmentation"] += [segment] * len(tokens)


def as_batch(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    batch = {name: torch.tensor([row[name] + [0] * (LENGTH - len(row[name])) for row in rows]) for name in NAMES}
    return {**batch, "weights": (batch["targets"] > 0).long()}


def test_packed_batches(race):
    random = np.random.default_rng(0)
    source, target = sentences(random), sentences(random)
    pairs = Pairs(source, target, source.lengths, target.lengths)
    usable = np.arange(PAIRS)
    seed = 0

    def ours() -> int:
        """One epoch, its order and its rows included."""
        nonlocal seed
        seed += 1
        stream = RowStream(pairs, usable, LENGTH, BATCH, seed=seed, rank=0, world_size=1)
        draws = stream._first_draw[1]
        return sum(len(stream(draw)["inputs"]) for draw in range(draws))

    def peer() -> int:
        order = np.random.default_rng(seed).permutation(PAIRS)
        return sum(len(batch["inputs"]) for batch in python_batches(pairs, order))

    assert abs(ours() - peer()) <= BATCH
    assert race(ours, peer, unit="pairs", work=PAIRS, rounds=5) >= GOAL
