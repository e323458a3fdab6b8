from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.newton_schulz import COEFFICIENTS, fused, newton_schulz, reference

SHAPES = [(1, 4, 4), (2, 20, 50), (2, 50, 20), (1, 1, 30)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_agrees_with_reference(device, shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    actual, exact = fused.newton_schulz(x), reference.newton_schulz(x.double())
    error = torch.linalg.vector_norm(actual.double() - exact) / torch.linalg.vector_norm(exact)
    assert error < (1e-5 if dtype is torch.float32 else 2e-2)
    assert actual.is_contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_are_near_one_and_vectors_kept(shape):
    x = torch.randn(shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    singular = torch.linalg.svdvals(newton_schulz(x, steps=10))
    assert singular.min() > 0.65
    assert singular.max() < 1.25
    inner = left.mT @ newton_schulz(x) @ right.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-9, rtol=0)


def test_it_is_what_torch_muon_does():
    from torch.optim._muon import _zeropower_via_newtonschulz as theirs

    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    expected = theirs(x, COEFFICIENTS, 5, 1e-7).float()
    actual = newton_schulz(x.bfloat16()[None])[0].float()
    torch.testing.assert_close(actual, expected, rtol=0.05, atol=0.02)


def test_coefficients_for_each_step(device):
    x = torch.randn(2, 5, 7, device=device)
    varied = [value * scale for scale in (1.0, 0.9) for value in COEFFICIENTS]
    torch.testing.assert_close(
        fused.newton_schulz(x, 2, 1e-7, varied), reference.newton_schulz(x, 2, 1e-7, varied), rtol=1e-4, atol=1e-5
    )
    for implementation in (fused, reference):
        with pytest.raises(ValueError, match="Must be 3, or 3 for each of 3 steps"):
            implementation.newton_schulz(x, 3, 1e-7, varied)


def test_a_zero_matrix_stays_zero(device):
    assert not fused.newton_schulz(torch.zeros(1, 3, 4, device=device)).any()


def test_operator():
    x = torch.randn(2, 5, 3)
    torch.library.opcheck(torch.ops.algoperf.newton_schulz, (x, 5, 1e-7, list(COEFFICIENTS)))
    compiled = torch.compile(newton_schulz, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), newton_schulz(x), rtol=0, atol=0)
