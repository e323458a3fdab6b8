from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.symmetric_product import fused, reference, symmetric_product, symmetric_update_

SHAPES = [(1, 1, 1), (2, 16, 40), (3, 33, 70), (1, 130, 65), (2, 65, 16)]


def draw(*shape, device, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_agrees_with_reference(device, shape, dtype):
    x = draw(*shape, device=device, dtype=dtype)
    addend = reference.symmetric_product(x.flip(0).double()).to(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 2**-7, "atol": 0.1}
    for given in (None, addend):
        actual = fused.symmetric_product(x, given, alpha=0.7, beta=-1.3)
        exact = reference.symmetric_product(x.double(), None if given is None else given.double(), alpha=0.7, beta=-1.3)
        torch.testing.assert_close(actual.double(), exact, **tolerance)
        torch.testing.assert_close(actual, actual.mT, **tolerance)


@pytest.mark.parametrize("shape", [(2, 40, 24), (2, 37, 21)], ids=str)
def test_kernel_takes_any_strides(device, shape):
    x = draw(*shape, device=device)
    for view in (x.mT, x[:, ::2, ::3], x.mT[:, 1:, 2:], x[1:]):
        torch.testing.assert_close(
            fused.symmetric_product(view), reference.symmetric_product(view), rtol=1e-5, atol=1e-5
        )


def test_statistics_of_any_strides(device):
    statistic = torch.zeros(2, 5, 7, device=device)[:, :, :5]
    fused.symmetric_update_(statistic, torch.ones(2, 5, 3, device=device), torch.tensor(0.5, device=device))
    assert (statistic == 1.5).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_update_agrees_with_reference(device, shape):
    statistic, x = torch.full((shape[0], shape[1], shape[1]), torch.nan, device=device), draw(*shape, device=device)
    statistic[:] = 2 * torch.eye(shape[1])
    expected = statistic.double()
    weight = torch.tensor(0.1, device=device)
    fused.symmetric_update_(statistic, x, weight)
    reference.symmetric_update_(expected, x.double(), weight.double())
    torch.testing.assert_close(statistic.double(), expected, rtol=1e-5, atol=1e-5)


def test_operators():
    x, statistic, weight = torch.randn(2, 3, 5), torch.eye(3).repeat(2, 1, 1), torch.tensor(0.1)
    torch.library.opcheck(symmetric_product, (x, statistic), {"alpha": 2.0})
    torch.library.opcheck(symmetric_update_, (statistic, x, weight))

    def both(statistic, x, weight):
        symmetric_update_(statistic, x, weight)
        return symmetric_product(x, statistic)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for value in (0.1, 0.2):
        with torch.compiler.set_stance("default" if value == 0.1 else "fail_on_recompile"):
            a, b = statistic.clone(), statistic.clone()
            torch.testing.assert_close(compiled(a, x, torch.tensor(value)), both(b, x, torch.tensor(value)))
