"""The gzipped CSV tables of ogbg-molpcba to packed arrays, one part for each split.

Raw, below `pcba/` (or in the folder itself): `raw/num-node-list`, `num-edge-list`, `node-feat`, `edge-feat`, `edge`,
`graph-label` and `split/scaffold/{train,valid,test}`, all `.csv.gz` without header. Rows of consecutive graphs follow each
other. Each bond becomes two directed edges: all bonds of a graph forward, then all reversed.

Packed: ragged `nodes` float32 [., 9] and `edges` float32 [., 3] (offsets count graphs), `senders` and `receivers`
int32 [.] along `edges`, `labels` int8 [graphs, 128] with -1 for a missing label. Graphs keep their raw order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, pack, source_files
from algoperf_torch.data.raw import find_raw, read_blocks
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.ogbg.batching import MISSING

PREPARATION = 1
NODE_FEATURES, EDGE_FEATURES, NUM_TASKS = 9, 3, 128
TABLES = ("num-node-list", "num-edge-list", "node-feat", "edge-feat", "edge", "graph-label")
SPLIT_FILES = {Split.TRAIN: "train", Split.VALIDATION: "valid", Split.TEST: "test"}
GRAPHS_PER_CHUNK = 8_192


class Source(NamedTuple):
    """Paths of the tables by name, and of the file that lists the graphs of one split."""

    tables: dict[str, Path]
    split: Path


def prepare(
    raw: Path, out: Path, *, workers: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Packs the folder `raw` as `out`. Raises `DataError` and `UsageError`."""
    root = raw / "pcba" if (raw / "pcba").is_dir() else raw
    tables = {name: find_raw(root, f"raw/{name}.csv.gz", f"raw/{name}.csv") for name in TABLES}
    splits = {
        split: find_raw(root, f"split/scaffold/{name}.csv.gz", f"split/scaffold/{name}.csv")
        for split, name in SPLIT_FILES.items()
    }
    jobs = [Job(split, "graphs", Source(tables, path)) for split, path in splits.items()]

    def fill(packing: Packing) -> dict[str, Any]:
        packing.run(jobs, write_split)
        return {}

    described = read_manifest(raw)
    return pack(
        out,
        fill,
        dataset="ogbg",
        preparation=PREPARATION,
        settings={"raw": source_files([*tables.values(), *splits.values()], root)},
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def write_split(part: PartWriter, source: Source) -> None:
    """Streams through all graphs and writes those of one split."""
    n_node, n_bond = read_sizes(source.tables["num-node-list"]), read_sizes(source.tables["num-edge-list"])
    if len(n_node) != len(n_bond):
        raise DataError(
            f"{source.tables['num-edge-list']} lists {len(n_bond):,} graphs, {source.tables['num-node-list']} {len(n_node):,}."
        )
    chosen = read_split(source.split, len(n_node))
    nodes = Table(source.tables["node-feat"], NODE_FEATURES, np.float32)
    bonds = Table(source.tables["edge-feat"], EDGE_FEATURES, np.float32)
    ends = Table(source.tables["edge"], 2, np.int64)
    labels = Table(source.tables["graph-label"], NUM_TASKS, np.float32)
    for first in range(0, len(n_node), GRAPHS_PER_CHUNK):
        last = min(first + GRAPHS_PER_CHUNK, len(n_node))
        sizes, counts, kept = n_node[first:last], n_bond[first:last], chosen[first:last]
        node_rows, bond_rows = nodes.read(int(sizes.sum())), bonds.read(int(counts.sum()))
        end_rows = ends.read(int(counts.sum()))
        check_ends(end_rows, sizes, counts, ends, first)
        codes = encode_labels(labels.read(last - first), labels, first)
        part.append_ragged("nodes", node_rows[np.repeat(kept, sizes)], sizes[kept])
        kept_bonds = np.repeat(kept, counts)
        row, flipped = both_directions(counts[kept])
        part.append_ragged("edges", bond_rows[kept_bonds][row], 2 * counts[kept])
        directed = end_rows[kept_bonds][row].astype(np.int32)
        part.append_flat("senders", np.where(flipped, directed[:, 1], directed[:, 0]))
        part.append_flat("receivers", np.where(flipped, directed[:, 0], directed[:, 1]))
        part.append("labels", codes[kept])
    for table in (nodes, bonds, ends, labels):
        table.finish()


def both_directions(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For graphs with so many bonds each: the bond of every directed edge, and whether it runs backwards.

    All bonds of a graph come first as they are, then all of them reversed.
    """
    doubled = 2 * counts
    within = np.arange(doubled.sum()) - np.repeat(np.cumsum(doubled) - doubled, doubled)
    bonds = np.repeat(counts, doubled)
    flipped = within >= bonds
    return np.repeat(np.cumsum(counts) - counts, doubled) + within - flipped * bonds, flipped


def check_ends(
    ends: NDArray[np.int64], sizes: NDArray[np.int64], counts: NDArray[np.int64], table: Table, first: int
) -> None:
    if not len(ends):
        return
    bad = np.flatnonzero((ends < 0).any(axis=1) | (ends.max(axis=1) >= np.repeat(sizes, counts)))
    if bad.size:
        graph = int(np.repeat(np.arange(len(sizes)), counts)[bad[0]])
        raise DataError(
            f"{table.path}: line {table.line - len(ends) + int(bad[0])} has the edge {ends[bad[0]].tolist()} in graph "
            f"{first + graph}, which has {sizes[graph]} nodes."
        )


def encode_labels(labels: NDArray[np.float32], table: Table, first: int) -> NDArray[np.int8]:
    """0, 1, or `MISSING` for an empty field."""
    missing = np.isnan(labels)
    bad = np.argwhere(~missing & (labels != 0) & (labels != 1))
    if len(bad):
        row, task = bad[0]
        raise DataError(
            f"{table.path}: line {first + row + 1} has the label {labels[row, task]}, expected 0, 1 or nothing."
        )
    return np.where(missing, MISSING, labels).astype(np.int8)


def read_sizes(path: Path) -> NDArray[np.int64]:
    sizes: NDArray[np.int64] = Table(path, 1, np.int64).rest()[:, 0]
    if (sizes < 0).any():
        raise DataError(f"{path}: line {int((sizes < 0).argmax()) + 1} has a negative number.")
    return sizes


def read_split(path: Path, num_graphs: int) -> NDArray[np.bool_]:
    """Which graphs belong to a split."""
    graphs: NDArray[np.int64] = Table(path, 1, np.int64).rest()[:, 0]
    outside = (graphs < 0) | (graphs >= num_graphs)
    if outside.any():
        line = int(outside.argmax())
        raise DataError(f"{path}: line {line + 1} names graph {graphs[line]} of {num_graphs}.")
    chosen = np.zeros(num_graphs, dtype=np.bool_)
    chosen[graphs] = True
    if chosen.sum() != len(graphs):
        raise DataError(f"{path} names {len(graphs) - int(chosen.sum())} graphs twice.")
    return chosen


class Table:
    """Rows of a CSV file without header, read in order, a given number at a time."""

    def __init__(self, path: Path, num_columns: int, dtype: type[np.generic]) -> None:
        self.path = path
        self.line = 1  # number of the next line that `read` gives
        self._num_columns, self._dtype = num_columns, np.dtype(dtype)
        self._blocks = read_blocks(path)
        self._parsed = 0  # lines parsed so far
        self._ready: NDArray[Any] = np.empty((0, num_columns), dtype=dtype)

    def read(self, count: int) -> NDArray[Any]:
        """The next `count` rows [count, num_columns]. Raises `DataError` where the file has fewer, or for a bad line."""
        pieces, found = [self._ready], len(self._ready)
        while found < count:
            block = next(self._blocks, None)
            if block is None:
                raise DataError(
                    f"{self.path} has {self._parsed:,} lines; more are needed for the graphs that are listed."
                )
            pieces.append(self._parse(block))
            found += len(pieces[-1])
        rows = np.concatenate(pieces)
        self._ready = rows[count:]
        self.line += count
        return rows[:count]

    def rest(self) -> NDArray[Any]:
        rows = np.concatenate([self._ready, *(self._parse(block) for block in self._blocks)])
        if not len(rows):
            raise DataError(f"{self.path} is empty.")
        return rows

    def finish(self) -> None:
        """Raises `DataError` where rows are left."""
        if len(self._ready) or next(self._blocks, None) is not None:
            raise DataError(f"{self.path} has more lines than the {self.line - 1:,} of the graphs that are listed.")

    def _parse(self, block: bytes) -> NDArray[Any]:
        import pyarrow as pa
        from pyarrow import csv

        names = [str(column) for column in range(self._num_columns)]
        try:
            table = csv.read_csv(
                pa.py_buffer(block),
                read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(block) + 1),
                parse_options=csv.ParseOptions(ignore_empty_lines=False),
                convert_options=csv.ConvertOptions(
                    column_types={name: pa.from_numpy_dtype(self._dtype) for name in names}, null_values=[""]
                ),
            )
        except pa.ArrowInvalid as error:
            number = re.search(r"[Rr]ow #(\d+)", str(error))
            line = f"line {self._parsed + int(number[1])}" if number else f"a line after {self._parsed}"
            raise DataError(f"{self.path}: {line}: {error}") from error
        self._parsed += table.num_rows
        rows = np.empty((table.num_rows, self._num_columns), dtype=self._dtype)
        for column, values in enumerate(table.columns):
            if values.null_count and self._dtype.kind != "f":
                raise DataError(f"{self.path}: an empty field before line {self._parsed + 1}.")
            rows[:, column] = values.to_numpy()
        return rows
