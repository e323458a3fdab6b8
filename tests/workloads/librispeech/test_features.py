"""The front end and SpecAugment against stored numbers, torchaudio, and their own definition."""

import numpy as np
import pytest
import torch
import torchaudio

from algoperf_torch.workloads.librispeech.features import LogMel, SpecAugment, num_frames


@pytest.fixture(scope="module")
def golden(golden_metrics):
    return golden_metrics("speech")


@pytest.fixture(scope="module")
def front_end():
    return LogMel()


def test_constants(golden, front_end):
    np.testing.assert_allclose(front_end.window, golden["fe_window"], atol=1e-7)
    np.testing.assert_allclose(front_end.mel, golden["fe_mel_matrix"], atol=1e-6)
    np.testing.assert_array_equal(front_end.mean, golden["fe_mean"])
    np.testing.assert_array_equal(front_end.std, golden["fe_std"])
    rows = np.flatnonzero(front_end.mel.sum(dim=1).numpy())
    assert (rows[0], rows[-1]) == (4, 243)


def test_golden_log_mel(golden, front_end):
    audio, paddings = (torch.from_numpy(golden[name]).float() for name in ("fe_audio_int16", "fe_paddings"))
    found, frame_paddings = front_end(audio, paddings)
    np.testing.assert_allclose(found, golden["fe_logmel"], atol=2e-5)
    np.testing.assert_array_equal(frame_paddings, golden["fe_frame_paddings"])


def test_samples_after_the_end_do_not_matter(front_end):
    torch.manual_seed(0)
    audio = torch.randn(1, 8_000) * 1_000
    paddings = (torch.arange(8_000) >= 5_000).float()[None]
    other = torch.where(paddings > 0, 30_000.0, audio)
    assert torch.equal(front_end(audio, paddings)[0], front_end(other, paddings)[0])


@pytest.mark.parametrize("valid", [1, 159, 160, 161, 3_999, 4_000, 8_000])
def test_number_of_valid_frames(front_end, valid):
    paddings = (torch.arange(8_000) >= valid).float()[None]
    _, frame_paddings = front_end(torch.zeros(1, 8_000), paddings)
    frames = num_frames(8_000)
    assert frame_paddings.shape == (1, frames)
    assert int((1 - frame_paddings).sum()) == min(frames, -(-valid // 160))


def test_full_length():
    assert num_frames(320_000) == 1998


def test_agrees_with_torchaudio(front_end):
    """The same definition there: power spectrum, HTK mels with triangles linear in Hz; only the mel matrix is ours."""
    torch.manual_seed(1)
    audio = torch.randn(2, 16_000) * 3_000
    found, _ = front_end(audio, torch.zeros_like(audio))
    emphasised = torchaudio.functional.preemphasis(audio * 2.0**-15, coeff=0.97)
    spectrum = torchaudio.functional.spectrogram(
        emphasised, 0, torch.hann_window(400), n_fft=512, hop_length=160, win_length=400, power=2.0,
        normalized=False, center=False,
    )  # fmt: skip
    # the library centres the window inside the transform: its frames begin 56 samples earlier
    frames = spectrum.shape[-1] - 1
    ours = front_end(audio[:, 56:], torch.zeros_like(audio[:, 56:]))[0][:, :frames]
    mels = torch.log((spectrum.transpose(1, 2) @ front_end.mel).clamp_min(1e-5))
    expected = (mels - front_end.mean) / front_end.std
    torch.testing.assert_close(ours[:, 1:], expected[:, 1 : ours.shape[1]], atol=2e-4, rtol=1e-4)
    assert found.shape == (2, num_frames(16_000), 80)


# -------------------------------------------------------------------------------------------------------- SpecAugment


def masked(augment, lengths, draws=None, frames=1998, samples=320_000):
    """Boolean [batch, frames, bins]: what the masks of utterances of so many frames cover."""
    paddings = (torch.arange(samples) >= 160 * lengths[:, None]).float()
    covered = []
    for masks, size in zip(augment(paddings, draws), (frames, 80), strict=True):
        place = torch.arange(size)
        inside = (place >= masks[..., :1]) & (place < masks.sum(dim=-1, keepdim=True))
        covered.append(inside.any(dim=1))
    return covered[0][:, :, None] | covered[1][:, None, :]


def test_golden_spec_augment(golden):
    names = ("sa_time_u_size", "sa_time_u_start", "sa_freq_u_size", "sa_freq_u_start")
    draws = torch.cat([torch.from_numpy(golden[name]) for name in names], dim=1)
    found = masked(SpecAugment(10, 2), torch.from_numpy(golden["sa_lengths"]), draws, 298, 298 * 160 + 241)
    np.testing.assert_array_equal(~found, golden["sa_mask"].astype(bool))


def test_masks_set_features_to_zero(front_end):
    torch.manual_seed(0)
    audio, paddings = torch.randn(2, 16_000) * 1_000, torch.zeros(2, 16_000)
    augment, draws = SpecAugment(3, 1), torch.rand(2, 8)
    found, _ = front_end(audio, paddings, *augment(paddings, draws))
    plain, _ = front_end(audio, paddings)
    covered = masked(augment, torch.tensor([98, 98]), draws, 98, 16_000)
    assert covered.any()
    assert torch.equal(found, plain.masked_fill(covered, 0.0))


@pytest.mark.parametrize(("time_masks", "frequency_masks"), [(10, 2), (15, 4)])
def test_spec_augment_bounds(time_masks, frequency_masks):
    augment = SpecAugment(time_masks, frequency_masks)
    lengths = torch.tensor([1, 19, 20, 200, 1998])
    torch.manual_seed(3)
    seen = 0
    for _ in range(20):
        covered = masked(augment, lengths)
        frames, bins = covered.all(dim=2), covered.all(dim=1)
        for row, length in zip(frames, lengths.tolist(), strict=True):
            assert int(row.sum()) <= time_masks * int(0.05 * length)
            assert not row[length:].any()
        assert (bins.sum(dim=1) <= frequency_masks * 26).all()
        seen += int(frames[-1].sum())
    assert seen / 20 == pytest.approx(time_masks * 0.025 * 1998 * 0.9, rel=0.25)  # they overlap a little
    assert not masked(augment, lengths, torch.zeros(5, augment.num_draws)).any()
