from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from algoperf_torch.kernels.cross_entropy import cross_entropy, fused, reference

SHAPES = [(1, 1), (3, 63), (2, 1024), (3, 1025), (2, 4100)]


def draw(rows, classes, device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(device, dtype)
    targets = torch.randint(0, classes, (rows,), generator=generator).to(device)
    weights = torch.rand(rows, generator=generator).to(device)
    weights[rows // 2] = 0
    targets[rows // 2] = -1  # impossible, and of no weight
    return logits, targets, weights


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_kernel_agrees_with_reference(device, shape, dtype, smoothing):
    logits, targets, weights = draw(*shape, device, dtype)
    losses, lse = fused.cross_entropy(logits, targets, weights, smoothing)
    exact, exact_lse = reference.cross_entropy(logits.double(), targets, weights.double(), smoothing)
    torch.testing.assert_close((losses.double(), lse.double()), (exact, exact_lse), rtol=1e-5, atol=1e-5)

    grad = torch.randn(shape[0], generator=torch.Generator().manual_seed(1)).to(device)
    actual = fused.cross_entropy_backward(grad, logits, targets, weights, lse, smoothing)
    expected = reference.cross_entropy_backward(
        grad.double(), logits.double(), targets, weights.double(), exact_lse, smoothing
    )
    rtol, atol = (1e-4, 1e-7) if dtype is torch.float32 else (2**-7, 1e-5)
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol)
    assert actual.dtype is dtype


def test_kernel_without_weights_and_with_strides(device):
    logits, targets, _ = draw(4, 300, device)
    targets = targets.clamp(min=0)
    losses, lse = fused.cross_entropy(logits[:, :200], targets % 200)
    torch.testing.assert_close(losses, functional.cross_entropy(logits[:, :200], targets % 200, reduction="none"))
    grad = torch.ones((), device=device).expand(4)
    actual = fused.cross_entropy_backward(grad, logits[:, :200], targets % 200, None, lse, 0.0)
    expected = logits[:, :200].softmax(dim=1) - functional.one_hot(targets % 200, 200)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_large_logits_do_not_overflow(device):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], device=device)
    losses, _ = fused.cross_entropy(logits, torch.tensor([1, 0], device=device))
    torch.testing.assert_close(losses, torch.tensor([2e4, 1.0986123], device=device))


def test_an_impossible_target_of_weight_shows(device):
    losses, _ = fused.cross_entropy(torch.zeros(2, 3, device=device), torch.tensor([3, -1], device=device))
    assert losses.isnan().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [True, False])
def test_reference_is_torch_cross_entropy(smoothing, weighted):
    logits, targets, weights = draw(5, 12, torch.device("cpu"))
    targets = targets.clamp(min=0)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = cross_entropy(ours, targets, weights if weighted else None, smoothing)
    expected = functional.cross_entropy(theirs, targets, reduction="none", label_smoothing=smoothing)
    expected = expected * weights if weighted else expected
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), ours), torch.autograd.grad(expected.sum(), theirs))


def test_gradient_is_the_derivative():
    logits, targets, weights = draw(4, 7, torch.device("cpu"))
    inputs = logits.double().requires_grad_()
    torch.autograd.gradcheck(lambda z: cross_entropy(z, targets.clamp(min=0), weights.double(), 0.1), (inputs,))


def test_operator():
    logits, targets, weights = draw(4, 7, torch.device("cpu"))
    targets = targets.clamp(min=0)
    torch.library.opcheck(torch.ops.algoperf.cross_entropy, (logits.requires_grad_(), targets, weights, 0.1))
    compiled = torch.compile(lambda z, t, w: cross_entropy(z, t, w, 0.1).sum(), fullgraph=True, backend="aot_eager")
    loss, expected = compiled(logits, targets, weights), cross_entropy(logits, targets, weights, 0.1).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))
