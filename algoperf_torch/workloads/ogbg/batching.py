"""Batches of graphs with static shapes: graphs in order while they fit, then padding up to fixed sizes.

A piece for `b` graphs has room for 26 b + 1 nodes, 56 b directed edges and b + 1 graphs. All that is left over belongs to
one padding graph behind the real ones (its edges are loops on the first padding node); graphs without nodes follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from algoperf_torch.data.packed import PackedSplit
from algoperf_torch.data.sampler import keyed_generator
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Batch
from algoperf_torch.workloads.ogbg.graphs import GraphBatch

NODES_PER_GRAPH = 26
EDGES_PER_GRAPH = 56
MISSING = -1  # label that is not known

Index = NDArray[np.int64]


class Limits(NamedTuple):
    """What the real graphs of a piece may add up to, inclusive; the piece has room for one node and one graph more."""

    nodes: int
    edges: int
    graphs: int

    @classmethod
    def for_graphs(cls, count: int) -> Self:
        return cls(NODES_PER_GRAPH * count, EDGES_PER_GRAPH * count, count)


class GraphStore:
    """The graphs of a split: flat arrays with the place of each graph in them.

    Args:
        nodes: float32 [all nodes, 9];  edges: float32 [all directed edges, 3].
        senders, receivers: int32 [all directed edges], as node numbers within the graph.
        labels: int8 [graphs, 128], 0, 1 or `MISSING`.
        node_starts, edge_starts: int64 [graphs + 1].
    """

    def __init__(
        self,
        nodes: NDArray[np.float32],
        edges: NDArray[np.float32],
        senders: NDArray[np.int32],
        receivers: NDArray[np.int32],
        labels: NDArray[np.int8],
        node_starts: Index,
        edge_starts: Index,
    ) -> None:
        # Plain arrays: the subclass for mapped files makes every indexing slower.
        self.nodes, self.edges, self.labels = np.asarray(nodes), np.asarray(edges), np.asarray(labels)
        self.senders, self.receivers = np.asarray(senders), np.asarray(receivers)
        self.node_starts, self.edge_starts = np.asarray(node_starts), np.asarray(edge_starts)
        self.n_node, self.n_edge = np.diff(self.node_starts), np.diff(self.edge_starts)

    @classmethod
    def from_packed(cls, split: PackedSplit) -> Self:
        (part,) = split.parts
        nodes, edges = part.ragged("nodes"), part.ragged("edges")
        senders, receivers = part.array("senders"), part.array("receivers")
        return cls(nodes.values, edges.values, senders, receivers, part.array("labels"), nodes.offsets, edges.offsets)

    @property
    def num_graphs(self) -> int:
        return len(self.n_node)

    def batch(self, pieces: list[Index], limits: Limits) -> Batch:
        """One padded batch of all pieces, each a list of graph numbers that keeps within the limits."""
        count = len(pieces)
        room_nodes, room_edges, room_graphs = limits.nodes + 1, limits.edges, limits.graphs + 1
        nodes = np.empty((count, room_nodes, self.nodes.shape[1]), dtype=np.float32)
        edges = np.empty((count, room_edges, self.edges.shape[1]), dtype=np.float32)
        senders, receivers = np.empty((2, count, room_edges), dtype=np.int64)
        n_node, n_edge = np.zeros((2, count, room_graphs), dtype=np.int64)
        labels = np.full((count, room_graphs, self.labels.shape[1]), MISSING, dtype=np.int8)
        for place, graphs in enumerate(pieces):
            written = nodes[place], edges[place], senders[place], receivers[place], n_node[place], n_edge[place]
            self._fill(graphs, place * room_nodes, *written)
            np.take(self.labels, graphs, axis=0, out=labels[place, : len(graphs)], mode="clip")
        known = labels.reshape(-1, labels.shape[-1])
        inputs = GraphBatch(
            nodes=torch.from_numpy(nodes.reshape(-1, nodes.shape[-1])),
            edges=torch.from_numpy(edges.reshape(-1, edges.shape[-1])),
            receivers=torch.from_numpy(receivers.reshape(-1)),
            senders=torch.from_numpy(senders.reshape(-1)),
            globals=None,
            n_node=torch.from_numpy(n_node.reshape(-1)),
            n_edge=torch.from_numpy(n_edge.reshape(-1)),
            num_pieces=count,
        )
        # NumPy to the end: torch would wake its threads, which other work on the processor needs, for so little.
        targets, weights = np.maximum(known, 0, dtype=np.float32), known != MISSING
        return {"inputs": inputs, "targets": torch.from_numpy(targets), "weights": torch.from_numpy(weights)}

    def _fill(
        self,
        graphs: Index,
        first_node: int,
        nodes: NDArray[np.float32],
        edges: NDArray[np.float32],
        senders: Index,
        receivers: Index,
        n_node: Index,
        n_edge: Index,
    ) -> None:
        """Writes one piece into its part of the batch, whose nodes begin at `first_node`."""
        real = len(graphs)
        n_node[:real], n_edge[:real] = self.n_node[graphs], self.n_edge[graphs]
        num_nodes, num_edges = int(n_node.sum()), int(n_edge.sum())
        n_node[real], n_edge[real] = len(nodes) - num_nodes, len(edges) - num_edges
        gather(self.nodes, self.node_starts[graphs], n_node[:real], nodes[:num_nodes])
        nodes[num_nodes:] = 0
        rows = gather(self.edges, self.edge_starts[graphs], n_edge[:real], edges[:num_edges])
        edges[num_edges:] = 0
        node_begins = np.repeat(first_node + np.cumsum(n_node[:real]) - n_node[:real], n_edge[:real])
        for stored, written in ((self.senders, senders), (self.receivers, receivers)):
            np.add(stored.take(rows), node_begins, out=written[:num_edges])
            written[num_edges:] = first_node + num_nodes


def gather(values: NDArray[Any], starts: Index, lengths: Index, out: NDArray[Any]) -> Index:
    """Copies the ranges `starts[i] : starts[i] + lengths[i]` of the rows of `values`, one after the other, to `out`.

    Returns the numbers of the copied rows.
    """
    rows: Index = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(len(out))
    np.take(values, rows, axis=0, out=out, mode="clip")  # "clip" writes straight to `out`; all rows are in range
    return rows


def cut(order: Index, n_node: Index, n_edge: Index, limits: Limits) -> Index:
    """int64 [pieces + 1]: where pieces begin in `order` when graphs are taken in order while all limits hold.

    Raises `DataError` for a graph that exceeds the limits by itself.
    """
    nodes = np.concatenate([[0], np.cumsum(n_node[order])])
    edges = np.concatenate([[0], np.cumsum(n_edge[order])])
    bounds = [0]
    while bounds[-1] < len(order):
        begin = bounds[-1]
        end = min(
            int(np.searchsorted(nodes, nodes[begin] + limits.nodes, side="right")) - 1,
            int(np.searchsorted(edges, edges[begin] + limits.edges, side="right")) - 1,
            begin + limits.graphs,
        )
        if end == begin:
            graph = int(order[begin])
            raise DataError(
                f"Graph {graph} has {n_node[graph]} nodes and {n_edge[graph]} edges; a batch of {limits.graphs} graphs "
                f"has room for {limits.nodes} and {limits.edges}. Use a larger batch."
            )
        bounds.append(end)
    return np.array(bounds, dtype=np.int64)


def num_pieces(store: GraphStore, global_batch_size: int, world_size: int, devices: int) -> int:
    """Number of pieces in a global batch: one for each device of the reference hardware.

    It does not depend on the number of ranks where that divides it, so that any of them see the same global batch. Fewer
    pieces are made (halving) as long as the largest graph does not fit. Raises `UsageError` where ranks cannot share.
    """
    pieces = devices
    while pieces > 1:
        limits = Limits.for_graphs(global_batch_size // pieces)
        fits = store.n_node.max() <= limits.nodes and store.n_edge.max() <= limits.edges
        if global_batch_size % pieces == 0 and fits:
            break
        pieces //= 2
    if pieces % world_size:
        if global_batch_size % world_size:
            raise UsageError(
                f"Global batch size {global_batch_size} is not divisible by {world_size} ranks; use a multiple."
            )
        pieces = world_size
    return pieces


class PieceStream:
    """Pieces without end: graphs in shuffled epochs, one epoch flowing into the next, cut by the limits.

    Piece i is a function of (seed, i). Only the boundaries between epochs are remembered, so any piece can be asked for.
    """

    def __init__(self, store: GraphStore, limits: Limits, *, seed: int) -> None:
        self._store, self._limits, self._seed = store, limits, seed
        self._first_piece = [0]  # of each epoch seen so far
        self._carry: list[Index] = [np.empty(0, dtype=np.int64)]  # graphs that the epoch before left for it
        self._epoch = -1
        self._order: Index = np.empty(0, dtype=np.int64)
        self._bounds: Index = np.zeros(1, dtype=np.int64)

    def piece(self, number: int) -> Index:
        """Graph numbers of a piece."""
        while self._first_piece[-1] <= number:
            self._load(len(self._first_piece) - 1)
        epoch = int(np.searchsorted(self._first_piece, number, side="right")) - 1
        if epoch != self._epoch:
            self._load(epoch)
        place = number - self._first_piece[epoch]
        return self._order[self._bounds[place] : self._bounds[place + 1]]

    def _load(self, epoch: int) -> None:
        random = keyed_generator(self._seed, epoch)
        self._order = np.concatenate([self._carry[epoch], random.permutation(self._store.num_graphs)])
        self._bounds = cut(self._order, self._store.n_node, self._store.n_edge, self._limits)
        self._epoch = epoch
        if epoch == len(self._first_piece) - 1:  # the last piece may still grow: it opens the next epoch
            self._first_piece.append(self._first_piece[epoch] + len(self._bounds) - 2)
            self._carry.append(self._order[self._bounds[-2] :])
