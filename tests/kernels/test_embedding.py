from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from algoperf_torch.kernels.embedding import fused, gather_rows, reference


@pytest.mark.parametrize("width", [1, 16, 63, 128, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_parts", [1, 4])
def test_kernel_agrees_with_reference(device, width, dtype, num_parts):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(5, width, generator=generator).to(device, dtype) for _ in range(num_parts)]
    ids = torch.randint(0, 5 * num_parts, (3, 7), generator=generator).to(device)
    ids[0, 0], ids[1, 1] = -1, 5 * num_parts
    actual = fused.gather_rows(ids, parts)
    assert torch.equal(actual, reference.gather_rows(ids, parts))
    assert not actual[0, 0].any()


def test_misaligned_tables(device):
    table = torch.randn(7 * 16 + 1, device=device)[1:].view(7, 16)
    ids = torch.tensor([6, 0, 3], device=device)
    assert torch.equal(fused.gather_rows(ids, [table]), table[ids])


def test_a_table_that_moved_is_noticed(device):
    ids = torch.tensor([1], device=device)
    for value in (1.0, 2.0):
        table = torch.full((2, 4), value, device=device)
        assert fused.gather_rows(ids, [table]).tolist() == [[value] * 4]


def test_reference_is_an_embedding_of_all_parts():
    parts = [torch.randn(5, 3, requires_grad=True) for _ in range(4)]
    ids = torch.randint(0, 20, (6, 2))
    whole = torch.cat([part.detach() for part in parts]).requires_grad_()
    ours, theirs = gather_rows(ids, parts), functional.embedding(ids, whole)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    weight = torch.randn_like(ours)
    grads = torch.autograd.grad((ours * weight).sum(), parts)
    torch.testing.assert_close(torch.cat(grads), torch.autograd.grad((theirs * weight).sum(), whole)[0])


def test_gradient_is_the_derivative():
    parts = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ids = torch.tensor([[0, 5, 5], [1, 1, 0]])
    torch.autograd.gradcheck(lambda *parts: gather_rows(ids, list(parts)), parts)
    torch.autograd.gradgradcheck(lambda *parts: gather_rows(ids, list(parts)).square(), parts)


def test_operator():
    parts = [torch.randn(3, 2, requires_grad=True) for _ in range(2)]
    ids = torch.tensor([[0, 5, 5], [1, 1, 0]])
    torch.library.opcheck(gather_rows, (ids, parts))
    compiled = torch.compile(lambda *parts: gather_rows(ids, list(parts)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*parts), gather_rows(ids, parts), rtol=0, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*parts).sum(), parts), torch.autograd.grad(gather_rows(ids, parts).sum(), parts)
    )
