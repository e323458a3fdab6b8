"""Data and model paths on a device, at the sizes of the workloads, with their gradients through autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from algoperf_torch.kernels import registry
from algoperf_torch.kernels.cross_entropy import cross_entropy
from algoperf_torch.kernels.dot_interaction import dot_interaction
from algoperf_torch.kernels.embedding import gather_rows
from algoperf_torch.kernels.newton_schulz import newton_schulz, reference
from algoperf_torch.kernels.segment_sum import segment_sum

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def kernels():
    registry.choose("fused")
    yield
    registry.choose("default")


@pytest.mark.parametrize("classes", [32_000, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cross_entropy(device, classes, dtype):
    logits = torch.randn(512, classes, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, classes, (512,), device=device)
    weights = (torch.rand(512, device=device) < 0.8).float()
    losses = cross_entropy(logits, targets, weights, 0.1)
    expected = functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=0.1) * weights
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    (ours,), (theirs,) = (torch.autograd.grad(x.sum(), logits, retain_graph=True) for x in (losses, expected))
    torch.testing.assert_close(ours, theirs, rtol=2**-7 if dtype is torch.bfloat16 else 1e-4, atol=1e-6)


def test_embedding_gradient_repeats_to_the_last_bit(device):
    parts = [torch.randn(4096, 128, device=device, requires_grad=True) for _ in range(4)]
    ids = (torch.rand(65_536, 26, device=device) ** 8 * 4 * 4096).long()
    weight = torch.randn(*ids.shape, 128, device=device)
    runs = [torch.autograd.grad((gather_rows(ids, parts) * weight).sum(), parts) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
    exact = torch.zeros(4 * 4096, 128, device=device, dtype=torch.float64)
    exact.index_add_(0, ids.flatten(), weight.flatten(0, 1).double())
    torch.testing.assert_close(torch.cat(runs[0]).double(), exact, rtol=1e-4, atol=1e-2)


def test_segment_sum_of_a_batch_of_graphs(device):
    segments = (torch.rand(28_672, device=device) ** 2 * 13_313).long()
    edges = torch.randn(28_672, 256, device=device, requires_grad=True)
    sums = segment_sum(edges, segments, 13_313, segments.argsort(stable=True))
    exact = torch.zeros(13_313, 256, device=device, dtype=torch.float64).index_add_(
        0, segments, edges.detach().double()
    )
    torch.testing.assert_close(sums.double(), exact, rtol=1e-5, atol=1e-4)
    weight = torch.randn_like(sums)
    (grad,) = torch.autograd.grad((sums * weight).sum(), edges)
    torch.testing.assert_close(grad, weight[segments], rtol=0, atol=0)


def test_dot_interaction(device):
    vectors = torch.randn(4096, 27, 128, device=device, requires_grad=True)
    rows, cols = torch.triu_indices(27, 27, device=device)
    ours, theirs = dot_interaction(vectors), (vectors.double() @ vectors.double().mT)[:, rows, cols]
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)
    weight = torch.randn_like(ours)
    (ours,) = torch.autograd.grad((ours * weight).sum(), vectors)
    (theirs,) = torch.autograd.grad((theirs * weight).sum(), vectors)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(12, 1024, 1024), (4, 1024, 4096), (4, 4096, 1024), (49, 384, 384)], ids=str)
def test_newton_schulz(device, shape):
    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    actual, exact = newton_schulz(x), reference.newton_schulz(x.double())
    error = torch.linalg.vector_norm(actual.double() - exact) / torch.linalg.vector_norm(exact)
    assert error < 2e-2


def test_compiled_training_of_a_loss(device):
    logits = torch.randn(64, 1000, device=device, requires_grad=True)
    targets = torch.randint(0, 1000, (64,), device=device)
    compiled = torch.compile(lambda z, t: cross_entropy(z, t).sum(), fullgraph=True)
    (ours,) = torch.autograd.grad(compiled(logits, targets), logits)
    (theirs,) = torch.autograd.grad(functional.cross_entropy(logits, targets, reduction="sum"), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert "cross_entropy" in registry.used()
