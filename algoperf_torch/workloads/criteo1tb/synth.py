"""Small click logs in the layout of the Criteo day files, with clicks that follow from the fields.

Each category of a column has a hidden weight, as has each integer column; a click is drawn from the logistic of their sum.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.spec import Split
from algoperf_torch.workloads.criteo1tb.prepare import NUM_DAYS, NUM_TEST_PIECES
from algoperf_torch.workloads.criteo1tb.records import NUM_CATEGORICAL, NUM_DENSE, VOCABULARY_SIZES

DEFAULT_EXAMPLES = 46_000
NUM_PIECES = 36  # of the last day, as in the original
MAX_CATEGORIES = 200  # distinct strings of a column, at most
MISSING = 0.1  # share of empty fields


def synthesise(folder: Path, *, num_train: int, seed: int) -> dict[str, int]:
    """Writes 24 gzip day files and returns the number of examples by split: a last day of 36 pieces is tested on."""
    random = np.random.Generator(np.random.Philox(key=seed))
    sizes = [min(size, MAX_CATEGORIES) for size in VOCABULARY_SIZES]
    names = [random.choice(2**32, size=size, replace=False) for size in sizes]
    weights = [random.normal(0, 0.7, size=size) for size in sizes]
    slopes = random.normal(0, 0.3, size=NUM_DENSE)
    days = NUM_DAYS - 1
    counts = [num_train // days + (day < num_train % days) for day in range(days)]
    piece = max(1, num_train // (4 * NUM_PIECES))
    counts.append(NUM_PIECES * piece - piece // 2)  # the last piece is short, as in the original
    for day, count in enumerate(counts):
        columns = draw(random, count, names, weights, slopes)
        text = "".join("\t".join(line) + "\n" for line in zip(*columns, strict=True))
        (folder / f"day_{day}.gz").write_bytes(gzip.compress(text.encode("ascii"), compresslevel=1, mtime=0))
    num_test = NUM_TEST_PIECES * piece
    return {Split.TRAIN: num_train, Split.VALIDATION: counts[-1] - num_test, Split.TEST: num_test}


def draw(
    random: np.random.Generator,
    count: int,
    names: list[NDArray[np.int64]],
    weights: list[NDArray[np.float64]],
    slopes: NDArray[np.float64],
) -> list[list[str]]:
    """40 columns of `count` strings."""
    score = np.full(count, -2.0)
    dense = []
    for column in range(NUM_DENSE):
        values = np.floor(random.lognormal(2.0, 1.5, size=count)).astype(np.int64) - 1  # -1 stands for missing, too
        missing = random.random(count) < MISSING
        score += slopes[column] * np.where(missing, -1.0, np.log(np.maximum(values, 0) + 1) - 2)
        dense.append(["" if gap else str(value) for value, gap in zip(values, missing, strict=True)])
    categorical = []
    for column in range(NUM_CATEGORICAL):
        size = len(names[column])
        picked = np.minimum(random.zipf(1.3, size=count) - 1, size - 1)
        missing = random.random(count) < MISSING
        score += np.where(missing, 0, weights[column][picked])
        chosen = names[column][picked]
        categorical.append(["" if gap else f"{name:08x}" for name, gap in zip(chosen, missing, strict=True)])
    clicks = random.random(count) < 1 / (1 + np.exp(-score))
    return [[str(int(click)) for click in clicks], *dense, *categorical]
