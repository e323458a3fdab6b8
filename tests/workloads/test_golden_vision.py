"""Forward, loss, gradient and initialisation of the vision models against the reference's own numbers."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.layers import running_statistics, set_batch_norm_update, set_dropout
from algoperf_torch.workloads.registry import build_workload

GOLDEN_FORM = "vision"


@dataclass
class Pass:
    """One model's outputs in evaluation mode, in training mode, and in evaluation mode after that one update."""

    evaluation: torch.Tensor
    training: torch.Tensor
    evaluation_after: torch.Tensor | None  # where there is batch norm
    grad_norms: np.ndarray
    statistics: dict  # norms of the running means and variances

    def output(self, mode):
        return {"eval": self.evaluation, "train": self.training}[mode]


class Case:
    """The big models take seconds a pass: every precision is run once."""

    def __init__(self, golden, workload, fill):
        self.golden, self.workload, self.fill = golden, workload, fill
        self.run = cache(self._run)

    def model(self, dtype=torch.float32):
        model = self.fill(self.workload.build_model()).to(dtype)
        set_dropout(model, 0.0)
        return model

    def batch(self, dtype=torch.float32):
        inputs = torch.from_numpy(self.golden.recipe("input_recipe")).to(dtype)
        targets = torch.from_numpy(np.asarray(self.golden.recipe("target_recipe")))
        return {"inputs": inputs, "targets": targets.to(dtype) if targets.is_floating_point() else targets}

    def _run(self, dtype=torch.float32):
        model, batch = self.model(dtype), self.batch(dtype)
        with torch.no_grad():
            evaluation = self.workload.forward(model.eval(), batch)
        training = self.workload.forward(model.train(), batch)
        loss = self.workload.loss(training, batch)
        (loss.summed / loss.n_valid).backward()
        layers = [module for module in model.modules() if hasattr(module, "running_mean")]
        with torch.no_grad():
            after = self.workload.forward(model.eval(), batch) if layers else None
        return Pass(
            evaluation,
            training.detach(),
            after,
            sorted_norms(p.grad for p in model.parameters()),
            {kind: sorted_norms(getattr(layer, f"running_{kind}") for layer in layers) for kind in ("mean", "var")},
        )


@pytest.fixture(scope="module")
def case(golden, fill):
    return Case(golden, build_workload(golden.workload), fill)


def assert_close_to_stored(output, stored, tolerance):
    """Within `tolerance` times the largest absolute value. Large images are stored with stride 5."""
    output = output.numpy()
    if output.shape != stored.shape:
        output = output[..., ::5, ::5]
    assert output.shape == stored.shape
    np.testing.assert_allclose(output, stored, rtol=0, atol=tolerance * np.abs(stored).max())


def sorted_norms(tensors):
    """L2 norms in the order of the sorted shapes, ascending among equal ones."""
    return np.array([norm for _, norm in sorted((tuple(t.shape), float(t.double().norm())) for t in tensors)])


def test_golden_input(case):
    inputs = case.golden.recipe("input_recipe")
    np.testing.assert_array_equal(inputs.ravel()[:64], case.golden["input_head"])
    assert inputs.sum(dtype=np.float64) == pytest.approx(float(case.golden["input_sum"]), abs=1e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_output(case, mode):
    output = case.run().output(mode)
    assert_close_to_stored(output, case.golden[f"{mode}_output"], 1e-5)
    whole = output.double()
    stats = [whole.sum(), whole.mean(), whole.abs().mean(), whole.abs().max()]
    scale = np.array([whole.numel(), 1, 1, 1]) * float(whole.abs().max())  # a sum adds up the rounding of its terms
    assert np.all(np.abs(np.array(stats) - case.golden[f"{mode}_output_stats"]) <= 1e-5 * scale)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_output_in_double_precision(case, mode):
    assert_close_to_stored(case.run(torch.float64).output(mode), case.golden[f"{mode}_output_float64"], 1e-9)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_golden_loss(case, mode, smoothing):
    loss = case.workload.loss(case.run().output(mode), case.batch(), smoothing)
    stored = case.golden[f"{mode}_loss_per_example_smoothing_{smoothing}"]
    np.testing.assert_allclose(loss.per_example, stored, rtol=1e-5)
    assert float(loss.summed) == pytest.approx(stored.sum(), rel=1e-5)
    assert float(loss.n_valid) == len(stored)


def test_golden_gradients(case):
    stored = case.golden["grad_norms_float64"]
    # a bias in front of a normalisation has a gradient of rounding noise: zero in both
    np.testing.assert_allclose(case.run(torch.float64).grad_norms, stored, rtol=1e-6, atol=1e-12)


def test_golden_gradients_in_single_precision(case):
    stored = case.golden["grad_norms"]
    np.testing.assert_allclose(case.run().grad_norms, stored, rtol=2e-3, atol=1e-5 * stored.max())


def test_golden_batch_norm(case):
    if "bn_running_mean_norms" not in case.golden:
        pytest.skip("no batch norm in these vectors")
    for kind in ("mean", "var"):
        np.testing.assert_allclose(case.run().statistics[kind], case.golden[f"bn_running_{kind}_norms"], rtol=1e-5)
    assert_close_to_stored(case.run().evaluation_after, case.golden["eval_output_after_one_bn_update"], 1e-5)


def test_golden_batch_norm_in_double_precision(case):
    if "eval_output_after_one_bn_update_float64" not in case.golden:
        pytest.skip("no batch norm in these vectors")
    stored = case.golden["eval_output_after_one_bn_update_float64"]
    assert_close_to_stored(case.run(torch.float64).evaluation_after, stored, 1e-9)


def test_golden_output_without_batch_norm_update(case):
    if "bn_running_mean_norms" not in case.golden:
        pytest.skip("no batch norm in these vectors")
    model = case.model().train()
    before = [statistic.clone() for statistic in running_statistics(model)]
    set_batch_norm_update(model, False)
    with torch.no_grad():
        assert_close_to_stored(case.workload.forward(model, case.batch()), case.golden["train_output"], 1e-5)
    assert all(torch.equal(old, new) for old, new in zip(before, running_statistics(model), strict=True))


def test_golden_initialisation(case):
    """Mean, standard deviation and extremes of every tensor, as far as two random draws can agree.

    Tensors of one shape are compared as a group, each figure in increasing order: two kinds may differ in one figure alone.
    """
    torch.manual_seed(1)
    model = case.workload.build_model()
    found = np.array([statistics(p.detach().double().numpy()) for p in model.parameters()])
    found_shapes = [tuple(p.shape) for p in model.parameters()]
    stored = case.golden["init_mean_std_min_max"][:, [1, 0, 2, 3]]
    for shape in set(found_shapes):
        ours, theirs = (
            np.sort(rows[[other == shape for other in shapes]], axis=0)
            for rows, shapes in ((found, found_shapes), (stored, case.golden.shapes))
        )
        size = int(np.prod(shape))
        error = 6 * theirs[:, 0].max() / size**0.5  # six standard errors of a mean
        assert np.all(abs(ours[:, 0] - theirs[:, 0]) <= error), shape
        assert np.all(abs(ours[:, 1] - theirs[:, 1]) <= 2 * error + 1e-12), shape
        if size >= 1000:
            np.testing.assert_allclose(ours[:, 2:], theirs[:, 2:], rtol=0.3, err_msg=str(shape))


def statistics(values):
    return values.std(), values.mean(), values.min(), values.max()
