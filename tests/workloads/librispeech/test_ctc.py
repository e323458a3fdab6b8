"""CTC loss as an operator, and greedy decoding."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from algoperf_torch.workloads.librispeech.ctc import ctc, greedy_decode
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def golden(golden_metrics):
    return golden_metrics("speech")


@pytest.fixture(scope="module")
def loss_case(golden):
    def make(paddings="ctc_logit_paddings", weights=None):
        logits = torch.from_numpy(golden["ctc_logits"]).requires_grad_()
        targets = tuple(torch.from_numpy(golden[name]) for name in ("ctc_targets", "ctc_target_paddings"))
        batch = {"targets": targets} | ({} if weights is None else {"weights": torch.from_numpy(golden[weights])})
        workload = build_workload("librispeech_conformer")
        return logits, workload.loss((logits, torch.from_numpy(golden[paddings])), batch)

    return make


def test_golden_ctc(golden, loss_case):
    logits, loss = loss_case()
    np.testing.assert_allclose(loss.per_example.detach(), golden["ctc_per_example"], rtol=1e-5)
    assert loss.summed.item() == pytest.approx(float(golden["ctc_summed"]), rel=1e-6)
    assert loss.n_valid.item() == float(golden["ctc_n_valid"])
    (loss.summed / loss.n_valid).backward()
    np.testing.assert_allclose(logits.grad, golden["ctc_grad"], atol=1e-6)


def test_golden_ctc_with_weights(golden, loss_case):
    _, loss = loss_case(weights="ctc_mask")
    np.testing.assert_allclose(loss.per_example.detach(), golden["ctc_masked_per_example"], rtol=1e-5)
    assert loss.summed.item() == pytest.approx(float(golden["ctc_masked_summed"]), rel=1e-6)
    assert loss.n_valid.item() == float(golden["ctc_masked_n_valid"])


def test_golden_ctc_without_enough_frames(golden, loss_case):
    _, loss = loss_case(paddings="ctc_short_logit_paddings")
    np.testing.assert_allclose(loss.per_example.detach(), golden["ctc_short_per_example"], rtol=1e-5)
    assert torch.isinf(loss.per_example[0])


def problem(batch=3, frames=12, labels=5, longest=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, frames, labels, dtype=dtype, generator=generator)
    targets = torch.randint(1, labels, (batch, longest), generator=generator)
    return logits, targets, torch.tensor([frames, frames - 3, frames - 1]), torch.tensor([longest - 2, 2, 0])


def test_ctc_is_the_library_s_loss_and_gradient():
    logits, targets, frames, lengths = problem()
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    found, _ = ctc(torch.log_softmax(ours, -1), targets, frames, lengths)
    expected = functional.ctc_loss(
        torch.log_softmax(theirs, -1).transpose(0, 1), targets, frames, lengths, reduction="none"
    )
    torch.testing.assert_close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_ctc_by_enumeration():
    """Minus the log of the summed probability of all alignments."""
    logits, targets, _, _ = problem(batch=1, frames=4, labels=3, longest=2)
    log_probs = torch.log_softmax(logits, -1)
    total = sum(
        log_probs[0, range(4), list(path)].sum().exp()
        for path in itertools.product(range(3), repeat=4)
        if [label for label, _ in itertools.groupby(path) if label] == targets[0].tolist()
    )
    found, _ = ctc(log_probs, targets, torch.tensor([4]), torch.tensor([2]))
    torch.testing.assert_close(found[0], -torch.log(total))


def test_ctc_op():
    logits, targets, _, _ = problem(dtype=torch.float32)
    log_probs = torch.log_softmax(logits, -1)
    frames, lengths = torch.full((3,), 12), torch.full((3,), 6)  # the library leaves what lies past an end undefined
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")  # lengths choose how much is computed
    torch.library.opcheck(ctc, (log_probs.requires_grad_(), targets, frames, lengths), test_utils=tests)


# ----------------------------------------------------------------------------------------------------------- decoding


def test_golden_greedy_decoding(golden):
    decoded, lengths = greedy_decode(torch.from_numpy(golden["gd_logits"]), torch.from_numpy(golden["gd_paddings"]))
    np.testing.assert_array_equal(decoded, golden["gd_decoded"])
    np.testing.assert_array_equal(torch.arange(24) >= lengths[:, None], golden["gd_decoded_paddings"])


def test_greedy_decoding_step_by_step():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(50, 20, 4, generator=generator)
    valid = torch.randint(0, 21, (50,), generator=generator)
    decoded, lengths = greedy_decode(logits, (torch.arange(20) >= valid[:, None]).float())
    for row in range(50):
        best = logits[row].argmax(-1)[: valid[row]].tolist()
        expected = [label for label, _ in itertools.groupby(best) if label]
        assert decoded[row].tolist() == expected + [0] * (20 - len(expected))
        assert int(lengths[row]) == len(expected)
