"""Static batches of graphs: golden batches, limits, streams that any rank and any draw can enter."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.workloads.ogbg.batching import GraphStore, Limits, PieceStream, cut, num_pieces
from algoperf_torch.workloads.ogbg.prepare import both_directions


@pytest.fixture(scope="module")
def golden_store(metric_vectors):
    arrays = metric_vectors.arrays
    n_node, n_bond = arrays["batching_in_num_nodes"], arrays["batching_in_num_edges"]
    rows, flipped = both_directions(n_bond)
    ends = arrays["batching_in_edge_index"][rows].astype(np.int32)
    labels = arrays["batching_in_labels"].reshape(-1, 128)
    return GraphStore(
        nodes=arrays["batching_in_node_feat"],
        edges=arrays["batching_in_edge_feat"][rows],
        senders=np.where(flipped, ends[:, 1], ends[:, 0]),
        receivers=np.where(flipped, ends[:, 0], ends[:, 1]),
        labels=np.where(np.isnan(labels), -1, labels).astype(np.int8),
        node_starts=np.concatenate([[0], n_node.cumsum()]),
        edge_starts=np.concatenate([[0], (2 * n_bond).cumsum()]),
    )


def in_order(store, limits):
    order = np.arange(store.num_graphs)
    bounds = cut(order, store.n_node, store.n_edge, limits)
    return [order[begin:end] for begin, end in pairwise(bounds)]


def test_golden_batches(golden_store, metric_vectors):
    limits = Limits.for_graphs(4)
    pieces = in_order(golden_store, limits)
    assert len(pieces) == len(metric_vectors.arrays["batching_out_nodes"])
    for number, piece in enumerate(pieces):
        batch = golden_store.batch([piece], limits)
        for name in ("nodes", "edges", "senders", "receivers", "n_node", "n_edge"):
            stored = metric_vectors.arrays[f"batching_out_{name}"][number]
            np.testing.assert_array_equal(getattr(batch["inputs"], name), stored, err_msg=name)
        np.testing.assert_array_equal(batch["targets"], metric_vectors.arrays["batching_out_targets"][number])
        np.testing.assert_array_equal(batch["weights"], metric_vectors.arrays["batching_out_weights"][number])


def test_golden_batches_of_two_devices(golden_store, metric_vectors):
    limits = Limits.for_graphs(8 // 2)
    pieces = in_order(golden_store, limits)
    for number, stored in enumerate(metric_vectors.arrays["batching_two_shards_n_node"]):
        batch = golden_store.batch(pieces[2 * number : 2 * number + 2], limits)
        np.testing.assert_array_equal(batch["inputs"].n_node.reshape(2, -1), stored)


def test_sizes_of_the_benchmark():
    limits = Limits.for_graphs(512)
    assert (limits.nodes + 1, limits.edges, limits.graphs + 1) == (13_313, 28_672, 513)
    limits = Limits.for_graphs(32_768)
    assert (limits.nodes + 1, limits.edges, limits.graphs + 1) == (851_969, 1_835_008, 32_769)


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=60)


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(20, 60), st.integers(30, 90), st.integers(1, 6))
def test_graphs_are_taken_while_all_limits_hold(counts, max_nodes, max_edges, max_graphs):
    n_node, n_edge = np.array(counts).T
    order = np.random.default_rng(0).permutation(len(counts))
    bounds = cut(order, n_node, n_edge, Limits(max_nodes, max_edges, max_graphs))
    expected = [0]
    used = np.zeros(3)
    for place, graph in enumerate(order):
        more = np.array([n_node[graph], n_edge[graph], 1])
        if (used + more > (max_nodes, max_edges, max_graphs)).any():
            expected.append(place)
            used[:] = 0
        used += more
    assert bounds.tolist() == [*expected, len(order)]


def test_graph_larger_than_the_limits():
    with pytest.raises(DataError, match="Graph 1 has 30 nodes and 5 edges; a batch of 1 graphs has room for 26 and 56"):
        cut(np.array([0, 1]), np.array([3, 30]), np.array([2, 5]), Limits.for_graphs(1))


def random_store(count=300, seed=0):
    rng = np.random.default_rng(seed)
    n_node, n_edge = rng.integers(1, 50, size=count), 2 * rng.integers(0, 50, size=count)
    return GraphStore(
        nodes=rng.normal(size=(n_node.sum(), 9)).astype(np.float32),
        edges=rng.normal(size=(n_edge.sum(), 3)).astype(np.float32),
        senders=rng.integers(0, np.repeat(n_node, n_edge)).astype(np.int32),
        receivers=rng.integers(0, np.repeat(n_node, n_edge)).astype(np.int32),
        labels=rng.integers(-1, 2, size=(count, 128)).astype(np.int8),
        node_starts=np.concatenate([[0], n_node.cumsum()]),
        edge_starts=np.concatenate([[0], n_edge.cumsum()]),
    )


def test_batch_holds_its_graphs():
    store, limits = random_store(), Limits.for_graphs(16)
    pieces = [np.array([5, 2, 77]), np.array([250]), np.array([8, 9, 10, 11])]
    inputs, targets, weights = store.batch(pieces, limits).values()
    assert inputs.n_node.sum() == len(inputs.nodes) == 3 * (limits.nodes + 1)
    assert inputs.n_edge.sum() == len(inputs.edges) == len(inputs.senders) == 3 * limits.edges
    nodes, edges = inputs.n_node.cumsum(0) - inputs.n_node, inputs.n_edge.cumsum(0) - inputs.n_edge
    for place, piece in enumerate(pieces):
        for offset, graph in enumerate([*piece, None]):
            row = place * (limits.graphs + 1) + offset
            node_rows = slice(nodes[row], nodes[row] + inputs.n_node[row])
            edge_rows = slice(edges[row], edges[row] + inputs.n_edge[row])
            senders, receivers = inputs.senders[edge_rows] - nodes[row], inputs.receivers[edge_rows] - nodes[row]
            if graph is None:  # the padding graph
                assert not inputs.nodes[node_rows].any()
                assert not inputs.edges[edge_rows].any()
                assert not senders.any()
                assert not receivers.any()
                assert not weights[row:][: limits.graphs + 1 - offset].any()
            else:
                stored = slice(*store.node_starts[graph : graph + 2])
                np.testing.assert_array_equal(inputs.nodes[node_rows], store.nodes[stored])
                stored = slice(*store.edge_starts[graph : graph + 2])
                np.testing.assert_array_equal(inputs.edges[edge_rows], store.edges[stored])
                np.testing.assert_array_equal(senders, store.senders[stored])
                np.testing.assert_array_equal(receivers, store.receivers[stored])
                np.testing.assert_array_equal(targets[row], np.maximum(store.labels[graph], 0))
                np.testing.assert_array_equal(weights[row], store.labels[graph] >= 0)


def test_pieces_run_through_shuffled_epochs():
    store, limits = random_store(), Limits.for_graphs(8)
    stream = PieceStream(store, limits, seed=1)
    pieces = [stream.piece(number) for number in range(150)]
    graphs = np.concatenate(pieces)
    epochs = [graphs[begin : begin + 300] for begin in range(0, len(graphs) - 300, 300)]
    assert len(epochs) >= 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(300))
    assert not np.array_equal(epochs[0], epochs[1])
    for piece in pieces:
        assert store.n_node[piece].sum() <= limits.nodes
        assert store.n_edge[piece].sum() <= limits.edges
        assert len(piece) <= 8


def test_any_piece_can_be_asked_for():
    store, limits = random_store(), Limits.for_graphs(8)
    stream = PieceStream(store, limits, seed=1)
    pieces = [stream.piece(number) for number in range(150)]
    for number in (149, 0, 60, 45, 46, 47, 1):
        np.testing.assert_array_equal(PieceStream(store, limits, seed=1).piece(number), pieces[number])
        np.testing.assert_array_equal(stream.piece(number), pieces[number])
    assert not np.array_equal(PieceStream(store, limits, seed=2).piece(0), pieces[0])


@pytest.mark.parametrize(
    ("batch", "ranks", "devices", "expected"),
    [
        (512, 1, 8, 8),
        (512, 2, 8, 8),
        (512, 4, 4, 4),
        (512, 8, 4, 8),
        (32, 1, 8, 8),
        (16, 1, 8, 8),
        (12, 1, 8, 4),
        (8, 1, 8, 4),
    ],
)
def test_number_of_pieces(batch, ranks, devices, expected):
    assert num_pieces(random_store(), batch, ranks, devices) == expected


def test_batch_that_ranks_cannot_share():
    with pytest.raises(UsageError, match="Global batch size 512 is not divisible by 3 ranks"):
        num_pieces(random_store(), 512, 3, 8)


def test_batches_have_one_shape():
    store, limits = random_store(), Limits.for_graphs(8)
    stream = PieceStream(store, limits, seed=1)
    shapes = {
        tuple(tuple(t.shape) for t in store.batch([stream.piece(i)], limits)["inputs"] if isinstance(t, torch.Tensor))
        for i in range(100)
    }
    assert len(shapes) == 1
