from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.dot_interaction import dot_interaction, fused, reference

SHAPES = [(1, 1, 1), (2, 27, 128), (3, 16, 63), (1, 33, 70)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_agrees_with_reference(device, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(shape, generator=generator).to(device, dtype)
    rtol, atol = (1e-5, 1e-4) if dtype is torch.float32 else (2**-7, 0.1)
    actual = fused.dot_interaction(vectors)
    torch.testing.assert_close(actual.double(), reference.dot_interaction(vectors.double()), rtol=rtol, atol=atol)
    grad = torch.randn(actual.shape, generator=generator).to(device, dtype)
    expected = reference.dot_interaction_backward(grad.double(), vectors.double())
    torch.testing.assert_close(fused.dot_interaction_backward(grad, vectors).double(), expected, rtol=rtol, atol=atol)


def test_order_is_row_by_row():
    vectors = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert dot_interaction(vectors).tolist() == [[1.0, 2.0, 3.0, 4.0, 6.0, 9.0]]


def test_gradient_is_the_derivative():
    torch.autograd.gradcheck(dot_interaction, (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True),))


def test_operator():
    vectors = torch.randn(2, 4, 3, requires_grad=True)
    torch.library.opcheck(dot_interaction, (vectors,))
    compiled = torch.compile(dot_interaction, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(vectors), dot_interaction(vectors), rtol=0, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(vectors).sum(), vectors),
        torch.autograd.grad(dot_interaction(vectors).sum(), vectors),
    )
