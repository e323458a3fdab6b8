from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from algoperf_torch.workloads.losses import (
    mean_absolute_error,
    mean_squared_error,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from algoperf_torch.workloads.metrics import accuracy_row

METRIC_VECTORS = Path(__file__).parents[1] / "data" / "golden" / "metrics-vision.npz"


def logits(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_cross_entropy_by_its_definition(smoothing, soft, masked):
    z = logits(6, 10)
    labels = torch.tensor([3, 0, 9, 1, 1, 5])
    one_hot = functional.one_hot(labels, 10).double()
    rows = torch.softmax(logits(6, 10, seed=1), dim=1)
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0]) if masked else None
    loss = softmax_cross_entropy(z, rows if soft else labels, weights, smoothing)
    target = (1 - smoothing) * (rows if soft else one_hot) + smoothing / 10
    expected = -(target * torch.log_softmax(z, dim=1)).sum(dim=1) * (1 if weights is None else weights)
    torch.testing.assert_close(loss.per_example, expected)
    torch.testing.assert_close(loss.summed, expected.sum())
    assert loss.n_valid.item() == (2.5 + 1 if masked else 6)


def test_softmax_cross_entropy_of_tokens():
    z, targets = logits(2, 5, 7), torch.randint(0, 7, (2, 5), dtype=torch.int32)
    weights = (torch.arange(10) % 3 > 0).reshape(2, 5)  # boolean
    loss = softmax_cross_entropy(z, targets, weights)
    expected = functional.cross_entropy(z.transpose(1, 2), targets.long(), reduction="none") * weights
    torch.testing.assert_close(loss.per_example, expected)
    assert loss.per_example.shape == (2, 5)
    assert loss.n_valid.item() == weights.sum().item()


def test_masked_entries_count_zero_even_where_they_are_no_numbers():
    z = logits(3, 4)
    z[1] = float("nan")
    z.requires_grad_()
    loss = softmax_cross_entropy(z, torch.tensor([0, 1, 2]), torch.tensor([1.0, 0.0, 1.0]))
    assert loss.summed.isfinite()
    assert loss.per_example[1] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_cross_entropy_with_missing_labels(smoothing):
    z = logits(3, 4).requires_grad_()
    labels = torch.tensor(
        [[0.0, 1.0, float("nan"), 1.0], [1.0, 1.0, 0.0, 0.0], [float("nan")] * 4], dtype=torch.float64
    )
    weights = ~labels.isnan()
    loss = sigmoid_cross_entropy(z, labels, weights, smoothing)
    y = (1 - smoothing) * labels.nan_to_num() + smoothing / 4  # over the number of tasks
    expected = -(y * functional.logsigmoid(z) + (1 - y) * functional.logsigmoid(-z)) * weights
    torch.testing.assert_close(loss.per_example, expected)
    assert loss.n_valid.item() == 7
    loss.summed.backward()
    assert z.grad.isfinite().all()
    assert torch.equal(z.grad == 0, ~weights)


def test_sigmoid_cross_entropy_is_stable_at_large_logits():
    loss = sigmoid_cross_entropy(torch.tensor([[90.0], [-90.0]]), torch.tensor([[0.0], [0.0]]))
    torch.testing.assert_close(loss.per_example, torch.tensor([[90.0], [0.0]]))


def test_regression_losses():
    outputs, targets, weights = logits(4, 5, 6), logits(4, 5, 6, seed=1), torch.tensor([1, 1, 0, 1])
    absolute, squared = mean_absolute_error(outputs, targets, weights), mean_squared_error(outputs, targets)
    torch.testing.assert_close(absolute.per_example, (outputs - targets).abs().mean(dim=(1, 2)) * weights)
    torch.testing.assert_close(squared.per_example, ((outputs - targets) ** 2).mean(dim=(1, 2)))
    assert absolute.n_valid.item() == 3
    assert squared.n_valid.item() == 4


def test_no_valid_example_gives_zero():
    loss = softmax_cross_entropy(logits(2, 3), torch.tensor([0, 1]), torch.zeros(2))
    assert loss.summed.item() == 0
    assert loss.n_valid.item() == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_compile_in_one_graph(smoothing):
    def total(z, targets, weights):
        return softmax_cross_entropy(z, targets, weights, smoothing)

    arguments = (logits(4, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(*arguments)
    for ours, eager in zip(compiled, total(*arguments), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.fixture(scope="module")
def vectors():
    with np.load(METRIC_VECTORS, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if name.startswith(("ce_", "l1_"))}


@pytest.mark.parametrize("masked", ["unmasked", "masked"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_golden_softmax_cross_entropy(vectors, kind, smoothing, masked):
    weights = vectors["ce_mask"] if masked == "masked" else None
    loss = softmax_cross_entropy(vectors["ce_logits"], vectors[f"ce_{kind}"], weights, smoothing)
    stored = f"ce_{kind}_smoothing_{smoothing}_{masked}"
    torch.testing.assert_close(loss.per_example, vectors[f"{stored}_per_example"], rtol=1e-5, atol=1e-6)
    summed, n_valid = vectors[f"{stored}_summed_nvalid"].tolist()
    assert loss.summed.item() == pytest.approx(summed, rel=1e-5)
    assert loss.n_valid.item() == n_valid


def test_golden_accuracy_sums(vectors):
    z, labels, mask = vectors["ce_logits"], vectors["ce_hard"], vectors["ce_mask"]
    row = accuracy_row(z, labels, mask, softmax_cross_entropy(z, labels, mask))
    torch.testing.assert_close(row[:2], vectors["ce_eval_sums"].double(), rtol=1e-5, atol=0)


def test_golden_mean_absolute_error(vectors):
    with np.load(METRIC_VECTORS, allow_pickle=False) as arrays:
        outputs, targets = torch.from_numpy(arrays["ssim_a"]), torch.from_numpy(arrays["ssim_b"])
    loss = mean_absolute_error(outputs, targets, vectors["l1_mask"])
    torch.testing.assert_close(loss.per_example, vectors["l1_per_example"], rtol=1e-5, atol=1e-7)
    assert loss.summed.item() == pytest.approx(vectors["l1_summed"].item(), rel=1e-5)
    assert loss.n_valid.item() == vectors["l1_n_valid"].item()
    unmasked = mean_absolute_error(outputs, targets).per_example
    torch.testing.assert_close(unmasked, vectors["l1_per_example_unmasked"], rtol=1e-5, atol=1e-7)
