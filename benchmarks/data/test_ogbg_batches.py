"""Batches of 512 graphs: flat gather against the data loader of torch_geometric, both without worker processes.

Run: `python -m pytest --benchmark-only benchmarks/data/test_ogbg_batches.py -s`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from algoperf_torch.workloads.ogbg.batching import GraphStore, Limits, PieceStream
from algoperf_torch.workloads.ogbg.synth import draw

GRAPHS = 8_192
BATCH, PIECES = 512, 8
GOAL = 10.0


def molecules() -> GraphStore:
    random = np.random.default_rng(0)
    drawn = [draw(random) for _ in range(GRAPHS)]
    n_node, n_bond = np.array([(len(molecule.atoms), len(molecule.bonds)) for molecule in drawn]).T
    return GraphStore(
        nodes=np.concatenate([molecule.atoms for molecule in drawn]).astype(np.float32),
        edges=np.concatenate([np.tile(molecule.bonds, (2, 1)) for molecule in drawn]).astype(np.float32),
        senders=np.concatenate([molecule.ends.T.reshape(-1) for molecule in drawn]).astype(np.int32),
        receivers=np.concatenate([molecule.ends[:, ::-1].T.reshape(-1) for molecule in drawn]).astype(np.int32),
        labels=random.integers(-1, 2, size=(GRAPHS, 128)).astype(np.int8),
        node_starts=np.concatenate([[0], n_node.cumsum()]),
        edge_starts=np.concatenate([[0], (2 * n_bond).cumsum()]),
    )


def as_data(store: GraphStore, graph: int) -> Data:
    nodes, edges = slice(*store.node_starts[graph : graph + 2]), slice(*store.edge_starts[graph : graph + 2])
    ends = np.stack([store.senders[edges], store.receivers[edges]]).astype(np.int64)
    return Data(
        x=torch.from_numpy(store.nodes[nodes]),
        edge_attr=torch.from_numpy(store.edges[edges]),
        edge_index=torch.from_numpy(ends),
        y=torch.from_numpy(store.labels[graph : graph + 1]),
    )


def test_batches_of_graphs(race):
    store, limits = molecules(), Limits.for_graphs(BATCH // PIECES)
    stream = PieceStream(store, limits, seed=0)
    position = 0

    def ours() -> None:
        """As many graphs as one pass of the peer, padded to static shapes."""
        nonlocal position
        found = 0
        while found < GRAPHS:
            pieces = [stream.piece(number) for number in range(position, position + PIECES)]
            store.batch(pieces, limits)
            position += PIECES
            found += sum(map(len, pieces))

    loader = DataLoader([as_data(store, graph) for graph in range(GRAPHS)], batch_size=BATCH, shuffle=True)

    def peer() -> None:
        for _ in loader:
            pass

    assert race(ours, peer, unit="graphs", work=GRAPHS) >= GOAL
