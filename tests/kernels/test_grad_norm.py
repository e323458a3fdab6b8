from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels import registry
from algoperf_torch.kernels.grad_norm import clip_coefficient, fused, reference
from algoperf_torch.kernels.launch import TensorTable


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_kernel_agrees_with_reference(layout, device, max_norm):
    generator = torch.Generator().manual_seed(0)
    grads = layout.column(generator, "grads", 0)
    norm, coefficient = fused.clip_coefficient(grads, max_norm)
    expected = reference.clip_coefficient([grad.double() for grad in grads], max_norm)
    torch.testing.assert_close((norm.double(), coefficient.double()), expected, rtol=1e-6, atol=0)


def test_counters_are_ready_for_the_next_launch(device):
    table = TensorTable()
    for scale in (1.0, 2.0, 3.0):
        grads = [torch.full((5000,), scale, device=device), torch.full((7,), scale, device=device)]
        norm, _ = fused.clip_coefficient(grads, 1.0, table=table)
        torch.testing.assert_close(norm.item(), scale * 5007**0.5)


def test_nothing_to_clip(device):
    for grads in ([], [torch.zeros(0, device=device)]):
        assert [value.item() for value in fused.clip_coefficient(grads, 1.0)] == [0.0, 1.0]


def test_other_dtypes_take_the_reference(device, monkeypatch):
    monkeypatch.setattr(registry, "DEVICES", frozenset({device.type}))
    grads = [torch.full((4,), 3.0, dtype=torch.float64, device=device)]
    norm, coefficient = clip_coefficient(grads, 1.0)
    assert (norm.item(), coefficient.dtype) == (6.0, torch.float64)


def test_reference_is_clip_grad_norm_():
    params = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 40)]
    for param in params:
        param.grad = torch.randn_like(param)
    grads = [param.grad.clone() for param in params]
    norm, coefficient = clip_coefficient(grads, 0.3)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(params, 0.3))
    torch.testing.assert_close([grad * coefficient for grad in grads], [param.grad for param in params])


def test_operator():
    grads = [torch.randn(3), torch.randn(4, 5)]
    torch.library.opcheck(clip_coefficient, (grads, 1.0))
    compiled = torch.compile(lambda grads: clip_coefficient(grads, 1.0), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(grads), clip_coefficient(grads, 1.0), rtol=0, atol=0)
