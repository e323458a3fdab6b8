"""Forward, loss, accuracy, gradient and initialisation of the Transformer against the reference's own numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.layers import set_dropout
from algoperf_torch.workloads.metrics import accuracy_row
from algoperf_torch.workloads.registry import build_workload

GOLDEN_FORM = "translation"
CASES = ["plain", "packed"]


@pytest.fixture(scope="module")
def case(golden, fill):
    workload = build_workload(golden.workload)
    model = fill(workload.build_model())
    with torch.no_grad():
        model.embedding.weight.mul_(32)
    set_dropout(model, 0.0)
    return SimpleNamespace(golden=golden, workload=workload, model=model, outputs={})


def batch_of(case, name):
    prefix = f"in_{name}_"
    batch = {
        key.removeprefix(prefix): torch.from_numpy(value)
        for key, value in case.golden.arrays.items()
        if key.startswith(prefix)
    }
    return {**batch, "weights": (batch["targets"] > 0).long()}


def output_of(case, name, mode):
    if (name, mode) not in case.outputs:
        with torch.no_grad():
            case.outputs[name, mode] = case.workload.forward(case.model.train(mode == "train"), batch_of(case, name))
    return case.outputs[name, mode]


def assert_close(found, stored, tolerance=1e-5):
    np.testing.assert_allclose(found, stored, rtol=0, atol=tolerance * max(float(np.std(stored)), 1e-6))


@pytest.mark.parametrize("name", CASES)
def test_golden_output(case, name):
    output, prefix = output_of(case, name, "eval"), f"out_{name}_eval_"
    assert_close(output[..., :16], case.golden[prefix + "first16"])
    assert_close(output[..., -16:], case.golden[prefix + "last16"])
    assert_close(output[..., ::997], case.golden[prefix + "every997"])
    np.testing.assert_allclose(output.double().abs().mean(-1), case.golden[prefix + "absmean"], rtol=1e-5)
    np.testing.assert_allclose(output.double().logsumexp(-1), case.golden[prefix + "logsumexp"], rtol=1e-6)
    total = output.double().abs().sum(-1).max().item()
    np.testing.assert_allclose(output.double().sum(-1), case.golden[prefix + "sum"], rtol=0, atol=1e-6 * total)
    np.testing.assert_array_equal(output.argmax(-1), case.golden[prefix + "argmax"])
    assert_close(output_of(case, name, "train")[..., :16], case.golden[f"out_{name}_train_first16"])


@pytest.mark.parametrize(("smoothing", "infix"), [(0.0, ""), (0.1, "ls01_")])
@pytest.mark.parametrize("name", CASES)
def test_golden_loss(case, name, smoothing, infix):
    loss = case.workload.loss(output_of(case, name, "train"), batch_of(case, name), smoothing)
    np.testing.assert_allclose(loss.per_example, case.golden[f"loss_{name}_{infix}per_example"], rtol=2e-5, atol=1e-5)
    assert float(loss.summed) == pytest.approx(float(case.golden[f"loss_{name}_{infix}summed"]), rel=1e-5)
    assert float(loss.n_valid) == float(case.golden[f"loss_{name}_{infix}n_valid_examples"])


@pytest.mark.parametrize("name", CASES)
def test_golden_accuracy(case, name):
    batch = batch_of(case, name)
    output = output_of(case, name, "train")
    correct, _, count = accuracy_row(output, batch["targets"], batch["weights"], case.workload.loss(output, batch))
    assert [float(correct), float(count)] == case.golden[f"acc_{name}"].tolist()


@pytest.mark.parametrize("name", CASES)
def test_golden_gradients(case, name, check_gradients):
    batch = batch_of(case, name)
    case.model.train().zero_grad(set_to_none=True)
    loss = case.workload.loss(case.workload.forward(case.model, batch), batch)
    check_gradients(case.model, loss, case.golden, f"{name}_")
    case.model.zero_grad(set_to_none=True)


def test_golden_initialisation(case, check_initialisation):
    torch.manual_seed(0)
    check_initialisation(case.workload.build_model(), case.golden)
