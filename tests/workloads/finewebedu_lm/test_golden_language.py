"""Forward, loss, gradient and initialisation of the language model against the reference's own numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.registry import build_workload

GOLDEN_FORM = "language"


@pytest.fixture(scope="module")
def case(golden, fill):
    workload = build_workload(golden.workload)
    model = fill(workload.build_model())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 0:
                parameter.fill_(5.0)
    batch = {name: torch.from_numpy(golden[f"in_{name}"]) for name in ("inputs", "targets", "weights")}
    with torch.no_grad():
        outputs = {mode: workload.forward(model.train(mode == "train"), batch) for mode in ("eval", "train")}
    return SimpleNamespace(golden=golden, workload=workload, model=model, batch=batch, outputs=outputs)


def assert_close(found, stored, tolerance=1e-5):
    np.testing.assert_allclose(found, stored, rtol=0, atol=tolerance * float(np.std(stored)))


def test_golden_output(case):
    output, golden = case.outputs["eval"], case.golden
    assert_close(output[..., :16], golden["out_eval_first16"])
    assert_close(output[..., -16:], golden["out_eval_last16"])
    assert_close(output[..., ::997], golden["out_eval_every997"])
    np.testing.assert_allclose(output.double().abs().mean(-1), golden["out_eval_absmean"], rtol=1e-5)
    np.testing.assert_allclose(output.double().logsumexp(-1), golden["out_eval_logsumexp"], rtol=1e-6)
    total = output.double().abs().sum(-1).max().item()
    np.testing.assert_allclose(output.double().sum(-1), golden["out_eval_sum"], rtol=0, atol=1e-6 * total)
    np.testing.assert_array_equal(output.argmax(-1), golden["out_eval_argmax"])
    assert_close(case.outputs["train"][..., :16], golden["out_train_first16"])


@pytest.mark.parametrize(("smoothing", "infix"), [(0.0, ""), (0.1, "ls01_")])
def test_golden_loss(case, smoothing, infix):
    loss = case.workload.loss(case.outputs["train"], case.batch, smoothing)
    np.testing.assert_allclose(loss.per_example, case.golden[f"loss_{infix}per_example"], rtol=2e-5, atol=1e-5)
    assert float(loss.summed) == pytest.approx(float(case.golden[f"loss_{infix}summed"]), rel=1e-5)
    assert float(loss.n_valid) == float(case.golden[f"loss_{infix}n_valid_examples"])


def test_golden_gradients(case, check_gradients):
    case.model.train().zero_grad(set_to_none=True)
    loss = case.workload.loss(case.workload.forward(case.model, case.batch), case.batch)
    check_gradients(case.model, loss, case.golden)
    case.model.zero_grad(set_to_none=True)


def test_golden_initialisation(case, check_initialisation):
    torch.manual_seed(0)
    check_initialisation(case.workload.build_model(), case.golden)
