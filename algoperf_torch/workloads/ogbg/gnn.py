"""Graph network (Battaglia et al., 2018, arXiv:1806.01261) that predicts 128 properties of a molecule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.kernels import registry
from algoperf_torch.kernels.segment_sum import segment_sum as sum_of_segments
from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.layers import Dropout
from algoperf_torch.workloads.ogbg.graphs import GraphBatch
from algoperf_torch.workloads.roles import mark_output, mark_roles

NODE_FEATURES = 9
EDGE_FEATURES = 3
LAYER_NORM_EPS = 1e-6
TRUNCATED_STD = 0.87962566103423978  # standard deviation of N(0, 1) cut at +-2

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


class Update(nn.Module):
    """MLP over several parts laid side by side: for each hidden width Linear, LayerNorm, activation, dropout.

    The first Linear is applied to each part before the parts meet: a part with one row per node or per graph is
    multiplied once, not once for every edge that reads it. `W [a; b; c] = W_a a + W_b b + W_c c`.
    """

    def __init__(self, part_widths: Sequence[int], hidden: Sequence[int], activation: str, dropout: float) -> None:
        super().__init__()
        self.part_widths = tuple(part_widths)
        widths = [sum(part_widths), *hidden]
        self.linears = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(len(hidden)))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=LAYER_NORM_EPS) for width in hidden)
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in hidden)
        self.activation = ACTIVATIONS[activation]

    def forward(self, parts: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Each part is (rows [m, width], index [n] of the row that each output reads, or None where m = n)."""
        first = self.linears[0]
        weights = first.weight.split(self.part_widths, dim=1)  # type: ignore[operator]
        x: Tensor | None = None
        for (rows, index), weight in zip(parts, weights, strict=True):
            term = functional.linear(rows, weight, first.bias if x is None else None)  # type: ignore[arg-type]
            term = term if index is None else term.index_select(0, index)
            x = term if x is None else x + term
        for i, (norm, dropout) in enumerate(zip(self.norms, self.dropouts, strict=True)):
            x = dropout(self.activation(norm(x if i == 0 else self.linears[i](x))))
        assert x is not None
        return x


class GraphLayer(nn.Module):
    """New edges from their ends, new nodes from the new edges, new globals from both."""

    def __init__(
        self, edge: int, node: int, globals_: int, hidden: Sequence[int], activation: str, dropout: float
    ) -> None:
        super().__init__()
        new = hidden[-1]
        self.edge = Update((edge, node, node, globals_), hidden, activation, dropout)
        self.node = Update((node, new, new, globals_), hidden, activation, dropout)
        self.globals_ = Update((new, new, globals_), hidden, activation, dropout)

    def forward(
        self,
        nodes: Tensor,
        edges: Tensor,
        globals_: Tensor,
        senders: Tensor,
        receivers: Tensor,
        node_graph: Tensor,
        edge_graph: Tensor,
        orders: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`orders` are those of the edges by sender and by receiver."""
        num_nodes, num_graphs = nodes.shape[0], globals_.shape[0]
        edges = self.edge([(edges, None), (nodes, senders), (nodes, receivers), (globals_, edge_graph)])
        sent = segment_sum(edges, senders, num_nodes, orders[0])
        received = segment_sum(edges, receivers, num_nodes, orders[1])
        nodes = self.node([(nodes, None), (sent, None), (received, None), (globals_, node_graph)])
        node_sum = segment_sum(nodes, node_graph, num_graphs)
        edge_sum = segment_sum(edges, edge_graph, num_graphs)
        return nodes, edges, self.globals_([(node_sum, None), (edge_sum, None), (globals_, None)])


class GraphNet(nn.Module):
    """Logits [num_graphs, num_outputs] of a `GraphBatch`. Padding graphs take part like any other.

    Args:
        latent: width of the embedded nodes and edges.
        hidden: hidden widths of every MLP; the last one is the width of nodes, edges and globals after a step.
        num_steps: steps of message passing, each with its own parameters.
        activation: "relu", "gelu" (tanh approximation) or "silu".
    """

    def __init__(
        self,
        *,
        latent: int = 256,
        hidden: Sequence[int] = (256,),
        num_steps: int = 5,
        num_outputs: int = 128,
        activation: str = "relu",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        # The reference's names: submissions that choose parameters by "embedding" in the name must not find these.
        self.node_embedder = mark_roles(nn.Linear(NODE_FEATURES, latent), weight=ParamRole.EMBEDDING)
        self.edge_embedder = mark_roles(nn.Linear(EDGE_FEATURES, latent), weight=ParamRole.EMBEDDING)
        widths = [(latent, latent, num_outputs)] + [(hidden[-1],) * 3] * (num_steps - 1)
        self.layers = nn.ModuleList(GraphLayer(*width, hidden, activation, dropout) for width in widths)
        self.decoder = mark_output(nn.Linear(hidden[-1], num_outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated LeCun normal weights, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = math.sqrt(1.0 / module.in_features) / TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(self, graphs: GraphBatch) -> Tensor:
        node_graph = segment_ids(graphs.n_node, graphs.nodes.shape[0])
        edge_graph = segment_ids(graphs.n_edge, graphs.edges.shape[0])
        nodes, edges = self.node_embedder(graphs.nodes), self.edge_embedder(graphs.edges)
        globals_ = nodes.new_zeros(graphs.n_node.shape[0], self.num_outputs)
        orders = (order_of(graphs.senders), order_of(graphs.receivers))
        for layer in self.layers:
            nodes, edges, globals_ = layer(
                nodes, edges, globals_, graphs.senders, graphs.receivers, node_graph, edge_graph, orders
            )
        logits: Tensor = self.decoder(globals_)
        return logits


def segment_ids(sizes: Tensor, total: int) -> Tensor:
    """int64 [total]: the segment of each row, for consecutive segments of the given sizes that add up to `total`.

    `repeat_interleave` with an output shape that the compiler knows and the device need not be asked for.
    """
    ends = sizes.cumsum(0)
    return torch.searchsorted(ends, torch.arange(total, device=sizes.device, dtype=ends.dtype), right=True)


def order_of(segment: Tensor) -> Tensor | None:
    """The rows by segment, which the kernel of `segment_sum` needs; `None` where it does not run."""
    return segment.argsort(stable=True) if registry.takes_path("segment_sum", segment.device) else None


def segment_sum(rows: Tensor, segment: Tensor, num_segments: int, order: Tensor | None = None) -> Tensor:
    """[num_segments, width]: sums of the rows of each segment; sorted segments need no `order`."""
    if registry.takes_path("segment_sum", rows.device):
        return sum_of_segments(rows, segment, num_segments, order)  # type: ignore[no-any-return]
    return rows.new_zeros(num_segments, rows.shape[1]).index_add(0, segment, rows)
