"""Forward, loss, gradient and initialisation of DLRM-small against the reference's own numbers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.criteo1tb.dlrm import Dlrm
from algoperf_torch.workloads.registry import build_workload

GOLDEN_FORM = "clicks"


@pytest.fixture(scope="module")
def case(golden, golden_file, fill):
    workload = build_workload(golden.workload)
    shapes = json.loads(golden_file.with_suffix(".shapes.json").read_text())
    options = {**workload.model_options(), "num_rows": shapes["golden_vocab_size"]}
    batch = {name: torch.from_numpy(golden[f"in_{name}"]) for name in ("inputs", "targets", "weights")}
    return SimpleNamespace(
        golden=golden, workload=workload, shapes=shapes, make=lambda: Dlrm(**options), fill=fill, batch=batch
    )


def test_golden_small_shapes(case):
    shapes = sorted(tuple(p.shape) for p in case.make().parameters())
    assert shapes == [tuple(shape) for shape in case.shapes["golden_shapes"]]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_output(case, mode):
    model = case.fill(case.make()).train(mode == "train")
    output = case.workload.forward(model, case.batch).detach().numpy()
    stored = case.golden[f"out_{mode}"]
    np.testing.assert_allclose(output, stored, rtol=0, atol=1e-5 * stored.std())


@pytest.mark.parametrize("masked", [True, False])
def test_golden_loss(case, masked):
    prefix = "" if masked else "nomask_"
    batch = case.batch if masked else {k: v for k, v in case.batch.items() if k != "weights"}
    output = torch.from_numpy(case.golden["out_train"])
    for smoothing in (0.0, 0.1):  # ignored
        loss = case.workload.loss(output, batch, smoothing)
        np.testing.assert_allclose(loss.per_example, case.golden[f"loss_{prefix}per_example"], rtol=1e-6, atol=1e-7)
        assert float(loss.summed) == pytest.approx(float(case.golden[f"loss_{prefix}summed"]), rel=1e-6)
        assert float(loss.n_valid) == float(case.golden[f"loss_{prefix}n_valid_examples"])


def test_golden_gradients(case, check_gradients):
    model = case.fill(case.make())
    check_gradients(model, case.workload.loss(case.workload.forward(model, case.batch), case.batch), case.golden)


def test_golden_initialisation(case, check_initialisation):
    torch.manual_seed(0)
    check_initialisation(case.make(), case.golden)
