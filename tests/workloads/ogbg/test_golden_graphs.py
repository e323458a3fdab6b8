"""Forward, loss, gradient and initialisation of the graph network against the reference's own numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.layers import set_dropout
from algoperf_torch.workloads.ogbg.graphs import GraphBatch
from algoperf_torch.workloads.registry import build_workload

GOLDEN_FORM = "graphs"


@pytest.fixture(scope="module")
def case(golden, fill):
    workload = build_workload(golden.workload)
    fields = ("nodes", "edges", "receivers", "senders", "n_node", "n_edge")
    tensors = {name: torch.from_numpy(golden[f"in_{name}"]) for name in fields}
    batch = {
        "inputs": GraphBatch(**tensors, globals=None),
        "targets": torch.from_numpy(golden["in_targets"]),
        "weights": torch.from_numpy(golden["in_weights"]),
    }

    def make():
        model = fill(workload.build_model())
        set_dropout(model, 0.0)
        return model

    return SimpleNamespace(golden=golden, workload=workload, make=make, batch=batch)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_output(case, mode):
    model = case.make().train(mode == "train")
    output = case.workload.forward(model, case.batch).detach().numpy()
    stored = case.golden[f"out_{mode}"]
    np.testing.assert_allclose(output, stored, rtol=0, atol=2e-5 * stored.std())


@pytest.mark.parametrize(("smoothing", "prefix"), [(0.0, ""), (0.1, "ls01_")])
def test_golden_loss(case, smoothing, prefix):
    output = torch.from_numpy(case.golden["out_train"])
    loss = case.workload.loss(output, case.batch, smoothing)
    stored = case.golden[f"loss_{prefix}per_example"]
    np.testing.assert_allclose(loss.per_example, stored, rtol=1e-6, atol=1e-6)
    assert float(loss.summed) == pytest.approx(float(case.golden[f"loss_{prefix}summed"]), rel=1e-6)
    assert float(loss.n_valid) == float(case.golden[f"loss_{prefix}n_valid_examples"])


def test_golden_loss_of_missing_labels_that_are_not_numbers(case):
    targets = torch.where(case.batch["weights"], case.batch["targets"], torch.nan)
    loss = case.workload.loss(torch.from_numpy(case.golden["out_train"]), {**case.batch, "targets": targets})
    assert float(loss.summed) == pytest.approx(float(case.golden["loss_summed"]), rel=1e-6)


def test_golden_gradients(case, check_gradients):
    model = case.make()
    check_gradients(model, case.workload.loss(case.workload.forward(model, case.batch), case.batch), case.golden)


def test_golden_initialisation(case, check_initialisation):
    torch.manual_seed(0)
    check_initialisation(case.workload.build_model(), case.golden)
