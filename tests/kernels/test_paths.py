"""The workloads with `--kernels fused`: the same numbers and gradients, in one graph, by the kernels."""

from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels import registry
from algoperf_torch.workloads.criteo1tb.dlrm import Dlrm
from algoperf_torch.workloads.losses import softmax_cross_entropy
from algoperf_torch.workloads.ogbg.gnn import GraphNet
from algoperf_torch.workloads.ogbg.graphs import GraphBatch


@pytest.fixture(autouse=True)
def kernels_on_this_device(monkeypatch, device):
    monkeypatch.setattr(registry, "DEVICES", frozenset({device.type}))
    monkeypatch.setattr(registry, "_used", set())
    yield
    registry.choose("default")


def loss_of_tokens(device):
    logits = torch.randn(3, 5, 37, device=device, requires_grad=True)
    targets = torch.randint(37, (3, 5), device=device)
    weights = torch.rand(3, 5, device=device)
    weights[1, 2:] = 0.0
    return lambda: softmax_cross_entropy(logits, targets, weights, 0.1).summed, [logits], {"cross_entropy"}


def loss_without_weights(device):
    logits = torch.randn(11, 10, device=device, requires_grad=True)
    targets = torch.randint(10, (11,), device=device)
    return lambda: softmax_cross_entropy(logits, targets).summed, [logits], {"cross_entropy"}


def clicks(device):
    model = Dlrm(num_rows=64, embedding_width=16, bottom=(16, 16), top=(16, 8)).to(device)
    inputs = torch.cat([torch.rand(6, 13), torch.randint(1000, (6, 26)).float()], dim=1).to(device)
    used = {"gather_rows", "segment_sum", "dot_interaction"}  # the second in the gradient of the first
    return lambda: model(inputs).square().sum(), list(model.parameters()), used


def molecules(device):
    model = GraphNet(latent=8, hidden=(8,), num_steps=2, num_outputs=4, dropout=0.0).to(device)
    ends = torch.randint(12, (2, 20), device=device)
    sizes = [torch.tensor(counts, device=device) for counts in ([5, 0, 7], [9, 0, 11])]
    graphs = GraphBatch(torch.randn(12, 9, device=device), torch.randn(20, 3, device=device), *ends, None, *sizes)
    return lambda: model(graphs).square().sum(), list(model.parameters()), {"segment_sum", "gather_rows"}


CASES = [loss_of_tokens, loss_without_weights, clicks, molecules]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_kernels_give_what_plain_pytorch_gives(make, device):
    torch.manual_seed(0)
    function, inputs, operations = make(device)
    results = {}
    for choice in ("default", "fused"):
        registry.choose(choice)
        torch.compiler.reset()
        value = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")()
        results[choice] = [value.detach(), *torch.autograd.grad(value, inputs)]
        assert set(registry.used()) == (operations if choice == "fused" else set())
    for ours, theirs in zip(results["fused"], results["default"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_path_that_was_measured_is_taken_by_default(device, monkeypatch):
    monkeypatch.setattr(registry, "MEASURED", frozenset({"cross_entropy"}))
    function, _, operations = loss_without_weights(device)
    function()
    assert set(registry.used()) == operations
    registry.choose("reference")
    function()
    assert not registry.used()
