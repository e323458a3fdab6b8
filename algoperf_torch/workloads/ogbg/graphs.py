"""A batch of graphs as one tuple of flat tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class GraphBatch(NamedTuple):
    """`num_graphs` graphs side by side: their nodes, and their directed edges, one after the other.

    `senders` and `receivers` count nodes within the batch. The sizes of a graph may be zero.
    """

    nodes: Tensor  # float32 [num_nodes, 9]
    edges: Tensor  # float32 [num_edges, 3]
    receivers: Tensor  # int64 [num_edges]
    senders: Tensor  # int64 [num_edges]
    globals: Tensor | None  # no features of whole graphs in this dataset
    n_node: Tensor  # int64 [num_graphs]
    n_edge: Tensor  # int64 [num_graphs]
