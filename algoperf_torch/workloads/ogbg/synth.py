"""Molecule-like graphs in the layout of ogbg-molpcba, with labels that follow from structure.

A molecule is a random tree, mostly a chain, with a few bonds that close rings. Each task has hidden weights over counts of
atom kinds, bond kinds, branches and rings; a molecule is active where the weighted sum is high. Two labels in five are missing.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.spec import Split
from algoperf_torch.workloads.ogbg.prepare import NUM_TASKS, SPLIT_FILES

DEFAULT_EXAMPLES = 4_096
ATOM_VALUES = (119, 5, 12, 12, 10, 6, 6, 2, 2)  # number of values of each atom feature
BOND_VALUES = (5, 6, 2)
ATOMS = np.array([5, 6, 7, 8, 15, 16])  # atomic numbers, less one, of the elements that occur
ATOM_SHARES = np.array([0.72, 0.11, 0.1, 0.02, 0.03, 0.02])
MISSING = 0.4  # share of missing labels


class Molecule(NamedTuple):
    atoms: NDArray[np.int64]  # [n, 9]
    bonds: NDArray[np.int64]  # [m, 3]
    ends: NDArray[np.int64]  # [m, 2]
    features: NDArray[np.float64]  # what labels depend on


def synthesise(folder: Path, *, num_train: int, seed: int) -> dict[str, int]:
    """Writes `pcba/raw` and `pcba/split` and returns the numbers of graphs; the other splits have a quarter each."""
    random = np.random.Generator(np.random.Philox(key=seed))
    num_other = max(1, num_train // 4)
    molecules = [draw(random) for _ in range(num_train + 2 * num_other)]
    features = np.stack([molecule.features for molecule in molecules])
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    scores = features @ random.normal(size=(features.shape[1], NUM_TASKS))
    scores += 0.3 * scores.std(axis=0) * random.normal(size=scores.shape)
    active = scores > np.quantile(scores, random.uniform(0.6, 0.95, size=NUM_TASKS), axis=0).diagonal()
    labels = np.where(random.random(active.shape) < MISSING, "", active.astype(int).astype(str))

    (folder / "pcba/raw").mkdir(parents=True)
    (folder / "pcba/split/scaffold").mkdir(parents=True)
    write_table(folder / "pcba/raw/num-node-list.csv.gz", ([len(molecule.atoms)] for molecule in molecules))
    write_table(folder / "pcba/raw/num-edge-list.csv.gz", ([len(molecule.bonds)] for molecule in molecules))
    write_table(folder / "pcba/raw/node-feat.csv.gz", np.concatenate([molecule.atoms for molecule in molecules]))
    write_table(folder / "pcba/raw/edge-feat.csv.gz", np.concatenate([molecule.bonds for molecule in molecules]))
    write_table(folder / "pcba/raw/edge.csv.gz", np.concatenate([molecule.ends for molecule in molecules]))
    write_table(folder / "pcba/raw/graph-label.csv.gz", labels)
    order = random.permutation(len(molecules))
    counts: dict[str, int] = {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}
    for (split, count), graphs in zip(counts.items(), np.split(order, np.cumsum([*counts.values()])[:-1]), strict=True):
        assert len(graphs) == count
        write_table(folder / f"pcba/split/scaffold/{SPLIT_FILES[Split(split)]}.csv.gz", np.sort(graphs)[:, None])
    return counts


def write_table(path: Path, rows: Iterable[Any]) -> None:
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=1, mtime=0))


def draw(random: np.random.Generator) -> Molecule:
    size = int(np.clip(random.normal(26, 6), 3, 60))
    parents = np.arange(size - 1)  # a chain ...
    branch = random.random(size - 1) < 0.2
    parents[branch] = (random.random(branch.sum()) * np.arange(1, size)[branch]).astype(np.int64)  # ... with branches
    rings = random.binomial(4, 0.6)
    closing = random.integers(0, max(size - 5, 1), size=rings)
    ends = np.concatenate(
        [
            np.stack([parents, np.arange(1, size)], axis=1),
            np.stack([closing, np.minimum(closing + 5, size - 1)], axis=1),
        ]
    )
    degree = np.bincount(ends.ravel(), minlength=size)
    kinds = random.choice(len(ATOMS), size=size, p=ATOM_SHARES)
    atoms = np.stack([random.integers(0, values, size=size) // 2 for values in ATOM_VALUES], axis=1)
    atoms[:, 0], atoms[:, 2] = ATOMS[kinds], np.minimum(degree, ATOM_VALUES[2] - 1)
    bonds = np.stack([random.integers(0, values, size=len(ends)) // 2 for values in BOND_VALUES], axis=1)
    features = np.concatenate(
        [
            np.bincount(kinds, minlength=len(ATOMS)),
            np.bincount(np.minimum(degree, 4), minlength=5),
            np.bincount(bonds[:, 0], minlength=BOND_VALUES[0]),
            [size, rings],
        ]
    )
    return Molecule(atoms, bonds, ends, features.astype(np.float64))
