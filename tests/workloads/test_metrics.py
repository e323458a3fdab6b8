import pytest
import torch

from algoperf_torch.errors import DataError
from algoperf_torch.workloads.losses import softmax_cross_entropy
from algoperf_torch.workloads.metrics import accuracy_row, mean_metrics, sum_row


def test_accuracy_row_counts_by_weight():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 0.0], [0.0, 3.0]])
    targets, weights = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    loss = softmax_cross_entropy(logits, targets, weights)
    row = accuracy_row(logits, targets, weights, loss)
    assert row.dtype == torch.float64
    assert row.tolist() == [2.0, pytest.approx(loss.per_example.double().sum().item()), 3.0]


def test_metrics_are_exact_for_any_cut_into_chunks():
    logits, targets = torch.randn(60, 5), torch.randint(0, 5, (60,))
    weights = torch.ones(60)

    def rows(size):
        parts = zip(logits.split(size), targets.split(size), weights.split(size), strict=True)
        return torch.stack([accuracy_row(z, y, w, softmax_cross_entropy(z, y, w)) for z, y, w in parts])

    whole = mean_metrics(rows(60), ("accuracy", "loss"), 60)
    for size in (1, 7, 20):
        cut = mean_metrics(rows(size), ("accuracy", "loss"), 60)
        assert cut["accuracy"] == whole["accuracy"]
        assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert whole["accuracy"] == (logits.argmax(1) == targets).sum().item() / 60


def test_sums_are_in_double_precision():
    values = torch.full((1000,), 0.1) + torch.arange(1000) * 1e6
    assert sum_row(values)[0] == values.double().sum()


@pytest.mark.parametrize(("count", "expected"), [(0.0, None), (0.0, 10), (9.0, 10), (11.0, 10)])
def test_wrong_number_of_examples_is_an_error(count, expected):
    with pytest.raises(DataError, match=f"over {count:g} examples"):
        mean_metrics(torch.tensor([[1.0, count]]), ("accuracy",), expected)
