"""Forward, loss, gradient and decoding of the speech models against the reference's own numbers."""

from functools import cache

import numpy as np
import pytest
import torch

from algoperf_torch.workloads.layers import running_statistics, set_batch_norm_update, set_dropout
from algoperf_torch.workloads.librispeech.ctc import greedy_decode
from algoperf_torch.workloads.registry import build_workload

GOLDEN_FORM = "speech"
SHOWN = 8  # channels of an inner layer that are stored


class Case:
    """One evaluation pass, one training pass with backward, both with everything that the vectors hold."""

    def __init__(self, golden, workload, fill):
        self.golden, self.workload, self.fill = golden, workload, fill
        self.run = cache(self._run)

    def model(self):
        model = self.fill(self.workload.build_model())
        model.spec_augment = None
        set_dropout(model, 0.0)
        return model

    def batch(self):
        arrays = {
            name: torch.from_numpy(self.golden[name]).float()
            for name in ("audio_int16", "input_paddings", "targets", "target_paddings")
        }
        values = list(arrays.values())
        return {"inputs": tuple(values[:2]), "targets": tuple(values[2:])}

    def _run(self):
        model, batch, inner = self.model(), self.batch(), {}
        for name, module in self.inner_modules(model):
            module.register_forward_hook(
                lambda module, _, output, name=name: inner.__setitem__(
                    f"{'train' if module.training else 'eval'}_{name}",
                    (output[0] if isinstance(output, tuple) else output).detach(),
                )
            )
        with torch.no_grad():
            outputs = {"eval": self.workload.forward(model.eval(), batch)}
        outputs["train"] = self.workload.forward(model.train(), batch)
        losses = {mode: self.workload.loss(output, batch) for mode, output in outputs.items()}
        (losses["train"].summed / losses["train"].n_valid).backward()
        norms = sorted((tuple(p.shape), float(p.grad.double().norm())) for p in model.parameters())
        return outputs, losses, inner, norms, running_statistics(model)

    def inner_modules(self, model):
        yield "subsample", model.dropout  # after the positions are added
        if hasattr(model, "blocks"):
            yield from ((f"conformer{i}", block) for i, block in enumerate(model.blocks))
        else:
            yield from ((f"lstm{i}", layer) for i, layer in enumerate(model.recurrent))
            yield from ((f"ffn{i}", layer) for i, layer in enumerate(model.feed_forward))


@pytest.fixture(scope="module")
def case(golden, fill):
    return Case(golden, build_workload(golden.workload), fill)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_logits(case, mode):
    logits, paddings = case.run()[0][mode]
    np.testing.assert_array_equal(paddings, case.golden["logit_paddings"])
    np.testing.assert_allclose(logits.detach(), case.golden[f"{mode}_logits"], atol=2e-4)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_layers(case, mode):
    for name, output in case.run()[2].items():
        if not name.startswith(mode):
            continue
        whole = output.double()
        stored = case.golden[f"{name}_stats"]
        scale = np.array([whole.numel(), 1, 1]) * float(whole.abs().mean())
        assert np.all(np.abs(np.array([whole.sum(), whole.mean(), whole.abs().mean()]) - stored) <= 2e-5 * scale), name
        np.testing.assert_allclose(output[..., :SHOWN], case.golden[f"{name}_slice"], atol=2e-4, err_msg=name)


def test_golden_layers_are_all_there(case):
    stored = {name.removesuffix("_slice") for name in case.golden.arrays if name.endswith("_slice")}
    assert stored == set(case.run()[2])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_loss(case, mode):
    loss = case.run()[1][mode]
    np.testing.assert_allclose(loss.per_example.detach(), case.golden[f"{mode}_per_example"], rtol=1e-5)
    assert loss.summed.item() == pytest.approx(float(case.golden[f"{mode}_summed"]), rel=1e-5)
    assert float(loss.n_valid) == float(case.golden[f"{mode}_n_valid"])


def test_golden_gradients(case):
    norms = case.run()[3]
    found = np.array([norm for _, norm in norms])
    # an attention key's bias has a gradient of zero
    np.testing.assert_allclose(found, case.golden["grad_norms"], rtol=5e-4, atol=1e-5)
    assert np.sqrt((found**2).sum()) == pytest.approx(float(case.golden["grad_norm_total"]), rel=5e-4)
    by_shape: dict = {}
    for shape, norm in norms:
        by_shape[shape] = by_shape.get(shape, 0.0) + norm**2
    np.testing.assert_allclose(np.sqrt(list(by_shape.values())), case.golden["grad_norm_by_shape"], rtol=5e-4)


def test_golden_batch_norm(case):
    statistics = case.run()[4]
    if not statistics:
        pytest.skip("no batch norm in this model")
    np.testing.assert_allclose(torch.stack(statistics), case.golden["bn_running"], atol=1e-5, rtol=1e-5)


def test_golden_logits_without_batch_norm_update(case):
    model = case.model().train()
    before = [statistic.clone() for statistic in running_statistics(model)]
    set_batch_norm_update(model, False)
    with torch.no_grad():
        logits, _ = case.workload.forward(model, case.batch())
    np.testing.assert_allclose(logits, case.golden["train_logits"], atol=2e-4)
    assert all(torch.equal(old, new) for old, new in zip(before, running_statistics(model), strict=True))


def test_golden_decoding(case):
    decoded, lengths = greedy_decode(*case.run()[0]["eval"])
    np.testing.assert_array_equal(decoded, case.golden["eval_decoded"])
    padded = torch.arange(decoded.shape[1]) >= lengths[:, None]
    np.testing.assert_array_equal(padded, case.golden["eval_decoded_paddings"])
