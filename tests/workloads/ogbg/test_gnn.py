"""The graph network: parameters and roles of all variants, its equations, initialisation, compilation."""

from collections import Counter

import pytest
import torch
from torch.nn import functional

from algoperf_torch.errors import SubmissionError
from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.layers import Dropout, set_dropout
from algoperf_torch.workloads.ogbg import SPECS
from algoperf_torch.workloads.ogbg.gnn import GraphNet, Update, segment_ids, segment_sum
from algoperf_torch.workloads.ogbg.graphs import GraphBatch
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles


def full_model(name):
    with torch.device("meta"):
        return build_workload(name).build_model()


def graphs(seed=0, n_node=(3, 1, 5, 2, 0), n_edge=(4, 0, 6, 2, 0)):
    generator = torch.Generator().manual_seed(seed)
    senders, receivers = [], []
    for start, size, count in zip(torch.tensor((0, *n_node)).cumsum(0).tolist(), n_node, n_edge, strict=False):
        senders.append(start + torch.randint(0, max(size, 1), (count,), generator=generator))
        receivers.append(start + torch.randint(0, max(size, 1), (count,), generator=generator))
    return GraphBatch(
        nodes=torch.randint(0, 6, (sum(n_node), 9), generator=generator).float(),
        edges=torch.randint(0, 3, (sum(n_edge), 3), generator=generator).float(),
        receivers=torch.cat(receivers),
        senders=torch.cat(senders),
        globals=None,
        n_node=torch.tensor(n_node),
        n_edge=torch.tensor(n_edge),
    )


@pytest.mark.parametrize(
    ("name", "tensors"), [("ogbg", 66), ("ogbg_gelu", 66), ("ogbg_silu", 66), ("ogbg_model_size", 78)]
)
def test_parameters(name, tensors):
    sizes = [parameter.numel() for parameter in full_model(name).parameters()]
    assert (len(sizes), sum(sizes)) == (tensors, SPECS[name].num_parameters)


def test_shapes_of_model_size():
    shapes = Counter(tuple(p.shape) for p in full_model("ogbg_model_size").parameters())
    assert shapes == {
        (128, 9): 1, (128, 3): 1, (128, 256): 1, (256, 256): 9, (256, 512): 1, (256, 640): 1, (256, 768): 3,
        (256, 1024): 4, (256,): 54, (128,): 3,
    }  # fmt: skip


def test_roles():
    model = full_model("ogbg")
    expected = {"embedding": 2, "weight": 16, "bias": 18, "layer_norm_scale": 15, "layer_norm_bias": 15}
    assert Counter(p.role.value for p in parameter_roles(model)) == expected
    assert Counter(role.value for role in reference_roles(n for n, _ in model.named_parameters()).values()) == expected
    roles = {p.name: p for p in parameter_roles(model)}
    assert roles["node_embedder.weight"].role is ParamRole.EMBEDDING
    assert roles["node_embedder.bias"].role is ParamRole.BIAS
    assert [name for name, p in roles.items() if p.is_output] == ["decoder.weight", "decoder.bias"]


def test_segments():
    sizes = torch.tensor([2, 0, 3, 0, 1])
    expected = torch.arange(5).repeat_interleave(sizes)
    torch.testing.assert_close(segment_ids(sizes, 6), expected)
    rows = torch.randn(6, 4)
    sums = torch.stack([rows[expected == segment].sum(0) for segment in range(5)])
    torch.testing.assert_close(segment_sum(rows, expected, 5), sums)


def test_parts_multiplied_apart_equal_the_concatenation():
    update = Update((4, 3, 2), (8, 8), "relu", 0.0)
    a, b, c = torch.randn(5, 4), torch.randn(6, 3), torch.randn(2, 2)
    to_b, to_c = torch.tensor([0, 5, 5, 2, 1]), torch.tensor([1, 0, 0, 1, 1])
    x = torch.cat([a, b[to_b], c[to_c]], dim=1)
    for linear, norm in zip(update.linears, update.norms, strict=True):
        x = functional.relu(norm(linear(x)))
    torch.testing.assert_close(update([(a, None), (b, to_b), (c, to_c)]), x)


def plain_forward(model, batch):
    """The definition, one graph after the other, with concatenations."""

    def mlp(update, *parts):
        x = torch.cat(parts, dim=-1)
        for linear, norm in zip(update.linears, update.norms, strict=True):
            x = update.activation(norm(linear(x)))
        return x

    outputs = []
    node_start = edge_start = 0
    for n, m in zip(batch.n_node.tolist(), batch.n_edge.tolist(), strict=True):
        nodes = model.node_embedder(batch.nodes[node_start : node_start + n])
        edges = model.edge_embedder(batch.edges[edge_start : edge_start + m])
        senders = batch.senders[edge_start : edge_start + m] - node_start
        receivers = batch.receivers[edge_start : edge_start + m] - node_start
        u = torch.zeros(model.num_outputs)
        for layer in model.layers:
            edges = torch.stack(
                [mlp(layer.edge, edges[i], nodes[senders[i]], nodes[receivers[i]], u) for i in range(m)]
                or [torch.zeros(model.decoder.in_features)]
            )[:m]
            nodes = torch.stack(
                [
                    mlp(layer.node, nodes[i], edges[senders == i].sum(0), edges[receivers == i].sum(0), u)
                    for i in range(n)
                ]
                or [torch.zeros(model.decoder.in_features)]
            )[:n]
            u = mlp(layer.globals_, nodes.sum(0), edges.sum(0), u)
        outputs.append(model.decoder(u))
        node_start, edge_start = node_start + n, edge_start + m
    return torch.stack(outputs)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_equations(name):
    torch.manual_seed(0)
    model = build_workload(name, model_scale="test").build_model().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(graphs()), plain_forward(model, graphs()), rtol=1e-4, atol=1e-5)


def test_activations():
    for name, function in (
        ("ogbg", functional.relu),
        ("ogbg_silu", functional.silu),
        ("ogbg_gelu", lambda x: functional.gelu(x, approximate="tanh")),
    ):
        x = torch.linspace(-4, 4, 50)
        torch.testing.assert_close(full_model(name).layers[0].edge.activation(x), function(x))


def test_initialisation_is_truncated():
    torch.manual_seed(0)
    for module in GraphNet(num_steps=2).modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.detach()
            std = (1 / module.in_features) ** 0.5
            assert float(weight.std()) == pytest.approx(std, rel=0.06)
            assert float(weight.abs().max()) <= 2 * std / 0.8796
            assert float(weight.abs().max()) > 1.9 * std
            assert not module.bias.any()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_dropout_sites(name):
    model = build_workload(name, model_scale="test").build_model()
    sites = sum(isinstance(module, Dropout) for module in model.modules())
    assert sites == 3 * len(model.layers) * len(model.layers[0].edge.linears)
    assert all(float(module.rate) == pytest.approx(0.1) for module in model.modules() if isinstance(module, Dropout))
    set_dropout(model, 0.0)
    torch.testing.assert_close(model(graphs()), model.eval()(graphs()))


@pytest.mark.parametrize("name", sorted(SPECS))
def test_compiles_once(name, count_compilations):
    model = build_workload(name, model_scale="test").build_model()
    batches = [graphs(seed) for seed in range(3)] + [graphs(4, n_node=(1, 6, 4, 0, 0), n_edge=(1, 9, 2, 0, 0))]

    def step(rate, batch):
        def call(compiled):
            set_dropout(model, rate)
            out = compiled(batch)
            out.sum().backward()
            if rate == 0:
                torch.testing.assert_close(out, model(batch))

        return call

    rates = (0.0, 0.1, 0.5, 0.0)
    calls = [step(rate, batch) for rate, batch in zip(rates, batches, strict=True)]
    assert count_compilations(model, *calls) == 1


def test_a_batch_cuts_itself_into_pieces():
    one, other = graphs(0), graphs(1)
    first = len(one.nodes)
    both = GraphBatch(
        nodes=torch.cat([one.nodes, other.nodes]),
        edges=torch.cat([one.edges, other.edges]),
        receivers=torch.cat([one.receivers, other.receivers + first]),
        senders=torch.cat([one.senders, other.senders + first]),
        globals=None,
        n_node=torch.cat([one.n_node, other.n_node]),
        n_edge=torch.cat([one.n_edge, other.n_edge]),
        num_pieces=2,
    )
    for part, expected in zip(both.cut(2), (one, other), strict=True):
        for found, tensor in zip(part, expected, strict=True):
            assert torch.equal(found, tensor) if isinstance(tensor, torch.Tensor) else found == tensor
    with pytest.raises(SubmissionError, match="2 pieces of graphs cannot be cut into 3"):
        both.cut(3)
