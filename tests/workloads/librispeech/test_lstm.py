"""The LSTM operator against the library's module, on both of its paths."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from algoperf_torch.workloads.librispeech import lstm
from algoperf_torch.workloads.librispeech.lstm import BidirectionalLSTM, bidirectional_lstm

FEATURES, HIDDEN, FRAMES = 6, 4, 9
LENGTHS = torch.tensor([9, 1, 5, 7])


def modules(dtype=torch.float64):
    torch.manual_seed(0)
    ours = BidirectionalLSTM(FEATURES, HIDDEN).to(dtype)
    theirs = nn.LSTM(FEATURES, HIDDEN, bidirectional=True, batch_first=True).to(dtype)
    with torch.no_grad():
        for parameter, value in zip(theirs.parameters(), ours.parameters(), strict=True):
            parameter.copy_(value)
    return ours, theirs


def library(module, x, lengths):
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(module(packed)[0], batch_first=True, total_length=x.shape[1])[0]


@pytest.mark.parametrize("path", [lstm._run_padded, lstm._run_packed], ids=["padded", "packed"])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS.clamp_max(7), LENGTHS.clamp_min(9)], ids=str)
def test_agrees_with_the_library_module(monkeypatch, path, lengths):
    monkeypatch.setattr(lstm, "run_library", path)
    ours, theirs = modules()
    x = torch.randn(4, FRAMES, FEATURES, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0], lengths), library(theirs, inputs[1], lengths)]
    torch.testing.assert_close(*outputs)
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        (output * upstream).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_padding_is_zero_and_does_not_matter():
    ours, _ = modules()
    x = torch.randn(4, FRAMES, FEATURES, dtype=torch.float64)
    padding = torch.arange(FRAMES) >= LENGTHS[:, None]
    output = ours(x, LENGTHS)
    assert torch.all(output[padding] == 0)
    assert torch.equal(ours(torch.where(padding[..., None], 1e3, x), LENGTHS), output)


def test_op():
    ours, _ = modules(torch.float32)
    x = torch.randn(4, FRAMES, FEATURES, requires_grad=True)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(bidirectional_lstm, (x, LENGTHS, list(ours.parameters())), test_utils=tests)


def test_initialisation():
    parameters = [parameter.detach() for parameter in BidirectionalLSTM(512, 256).parameters()]
    assert [tuple(p.shape) for p in parameters] == [(1024, 512), (1024, 256), (1024,), (1024,)] * 2
    for parameter in parameters:
        assert float(parameter.abs().max()) <= 0.0625
        assert float(parameter.std()) == pytest.approx(0.0625 / 3**0.5, rel=0.1)
