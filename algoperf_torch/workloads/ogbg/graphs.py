"""A batch of graphs as one tuple of flat tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from algoperf_torch.errors import SubmissionError


class GraphBatch(NamedTuple):
    """Graphs side by side: their nodes, and their directed edges, one after the other.

    `senders` and `receivers` count nodes within the batch. The sizes of a graph may be zero.
    """

    nodes: Tensor  # float32 [num_nodes, 9]
    edges: Tensor  # float32 [num_edges, 3]
    receivers: Tensor  # int64 [num_edges]
    senders: Tensor  # int64 [num_edges]
    globals: Tensor | None  # no features of whole graphs in this dataset
    n_node: Tensor  # int64 [num_graphs]
    n_edge: Tensor  # int64 [num_graphs]
    num_pieces: int = 1  # equally large parts, each with padding of its own, that no edge leaves

    def cut(self, n: int) -> list[GraphBatch]:
        """The batch in `n` equal parts of whole pieces. Raises `SubmissionError` where there are not so many."""
        if n < 1 or self.num_pieces % n:
            raise SubmissionError(f"A batch of {self.num_pieces} pieces of graphs cannot be cut into {n} equal parts.")
        nodes, edges, receivers, senders, n_node, n_edge = (
            tensor.unflatten(0, (n, -1))
            for tensor in (self.nodes, self.edges, self.receivers, self.senders, self.n_node, self.n_edge)
        )
        first = nodes.shape[1]
        return [
            GraphBatch(
                nodes[part],
                edges[part],
                receivers[part] - part * first,
                senders[part] - part * first,
                None,
                n_node[part],
                n_edge[part],
                self.num_pieces // n,
            )
            for part in range(n)
        ]
