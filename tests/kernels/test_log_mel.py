from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from algoperf_torch.kernels.log_mel import fused, log_mel, reference

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "metrics-speech.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if arrays[name].dtype.kind != "U"}


def given(golden, samples, device):
    audio = golden["fe_audio_int16"][:, :samples].float()
    constants = (golden[f"fe_{name}"] for name in ("window", "mel_matrix", "mean", "std"))
    return [tensor.to(device) for tensor in (audio, golden["fe_paddings"][:, :samples].float(), *constants)]


def masks(*rows, device):
    return torch.tensor(rows, device=device)


@pytest.mark.parametrize("samples", [401, 561, 8000])
def test_kernel_agrees_with_reference(golden, device, samples):
    inputs = given(golden, samples, device)
    features, paddings = fused.log_mel(*inputs)
    exact, expected_paddings = reference.log_mel(*(tensor.double() for tensor in inputs))
    torch.testing.assert_close(features.double(), exact, rtol=1e-4, atol=2e-4)
    assert torch.equal(paddings.double(), expected_paddings)


def test_masks(golden, device):
    inputs = given(golden, 8000, device)
    time_masks = masks([[3, 5], [4, 0]], [[0, 1], [40, 20]], device=device)
    bin_masks = masks([[0, 26], [70, 9]], [[5, 0], [79, 1]], device=device)
    for pair in ((time_masks, bin_masks), (time_masks, None), (None, bin_masks)):
        actual, expected = fused.log_mel(*inputs, *pair)[0], reference.log_mel(*inputs, *pair)[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-4)
        assert torch.equal(actual == 0, expected == 0)


def test_masks_are_those_of_spec_augment(golden):
    """The golden masks, from sizes and starts drawn as the specification says, applied to features of ones."""
    lengths = golden["sa_lengths"].float()[:, None]
    width = torch.minimum(
        torch.trunc(0.05 * lengths * golden["sa_time_u_size"]), torch.trunc(0.05 * lengths).clamp(min=1)
    )
    first = torch.trunc(golden["sa_time_u_start"] * (lengths - width + 1))
    time_masks = torch.stack([first, width], dim=2).long()
    width = torch.trunc(27 * golden["sa_freq_u_size"])
    first = torch.trunc(golden["sa_freq_u_start"] * (80 - width + 1))
    bin_masks = torch.stack([first, width], dim=2).long()
    audio = torch.randn(4, 401 + 297 * 160) * 1000
    constants = (golden[f"fe_{name}"] for name in ("window", "mel_matrix", "mean", "std"))
    features, _ = log_mel(audio, torch.zeros_like(audio), *constants, time_masks, bin_masks)
    assert torch.equal((features != 0).to(torch.uint8), golden["sa_mask"])


def test_golden_features(golden):
    features, paddings = log_mel(*given(golden, None, torch.device("cpu")))
    torch.testing.assert_close(features, golden["fe_logmel"], rtol=1e-4, atol=2e-4)
    assert torch.equal(paddings, golden["fe_frame_paddings"])


@pytest.mark.slow
def test_golden_features_from_the_kernel(golden, device):
    features, paddings = fused.log_mel(*given(golden, None, device))
    torch.testing.assert_close(features.cpu(), golden["fe_logmel"], rtol=1e-4, atol=2e-4)
    assert torch.equal(paddings.cpu(), golden["fe_frame_paddings"])


def test_operator(golden):
    inputs = given(golden, 600, torch.device("cpu"))
    both = (masks([[0, 1]], [[0, 0]], device="cpu"), masks([[3, 1]], [[2, 9]], device="cpu"))
    torch.library.opcheck(log_mel, (*inputs, *both))
    compiled = torch.compile(log_mel, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, *both), log_mel(*inputs, *both), rtol=0, atol=0)
