from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algoperf_torch.kernels.segment_sum import fused, reference, segment_sum


def check(values, segments, num_segments, order=None):
    actual = fused.segment_sum(values, segments, num_segments, order)
    exact = reference.segment_sum(values.double(), segments, num_segments)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [1, 63, 128, 300])
def test_kernel_agrees_with_reference(device, width):
    """A segment of several chunks, one that ends at a border, empty ones, and one of a single row."""
    sizes = [3, 0, fused.CHUNK - 3, 5 * fused.CHUNK + 7, 1, 0, 20]
    segments = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
    values = torch.randn(len(segments), width, generator=torch.Generator().manual_seed(0)).to(device)
    check(values, segments, len(sizes) + 2)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 200)), min_size=1, max_size=8), seed=st.integers(0, 9)
)
def test_any_segments_in_any_order(device, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    segments = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    segments = segments[torch.randperm(len(segments), generator=generator)].to(device)
    values = torch.randn(len(segments), 5, generator=generator).to(device)
    check(values, segments, len(sizes), segments.argsort(stable=True))


def test_a_segment_longer_than_a_group_of_chunks(device):
    rows = fused.CHUNK * (2 * fused.GROUP + 3) + 1
    segments = torch.tensor([0, *[1] * (rows - 2), 2], device=device)
    check(torch.ones(rows, 3, device=device), segments, 3)


def test_rows_of_no_segment_are_left_out(device):
    segments = torch.tensor([-1, -1, 0, 2, 5, 5], device=device)
    check(torch.ones(6, 4, device=device), segments, 3)


def test_bfloat16_is_added_in_float32(device):
    values = torch.ones(1000, 2, device=device, dtype=torch.bfloat16)
    assert fused.segment_sum(values, torch.zeros(1000, dtype=torch.int64, device=device), 1).tolist() == [[1000.0] * 2]


def test_unsorted_segments_show(device):
    segments = torch.tensor([0, 2, 1, 1], device=device)
    assert fused.segment_sum(torch.ones(4, 3, device=device), segments, 3)[1].isnan().all()
    across_a_border = torch.tensor([1] * fused.CHUNK + [0], device=device)
    assert fused.segment_sum(torch.ones(fused.CHUNK + 1, 3, device=device), across_a_border, 2)[0].isnan().all()


def test_nothing(device):
    assert not fused.segment_sum(
        torch.ones(0, 3, device=device), torch.zeros(0, dtype=torch.int64, device=device), 2
    ).any()


def test_gradient_is_the_derivative():
    values = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([0, 0, 1, 3, 3, 3])
    torch.autograd.gradcheck(lambda v: segment_sum(v, segments, 4), (values,))
    torch.autograd.gradgradcheck(lambda v: segment_sum(v, segments, 4).square(), (values,))


def test_operator():
    values, segments = torch.randn(6, 3, requires_grad=True), torch.tensor([2, 0, 1, 0, 2, 2])
    order = segments.argsort(stable=True)
    torch.library.opcheck(segment_sum, (values, segments, 4, order))
    compiled = torch.compile(lambda v: segment_sum(v, segments, 4, order), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(values), segment_sum(values, segments, 4, order), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(compiled(values)[:, 0].sum(), values)
    torch.testing.assert_close(grad, torch.tensor([1.0, 0.0, 0.0]).expand(6, 3))
