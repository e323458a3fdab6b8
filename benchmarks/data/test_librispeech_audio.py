"""Waveforms from packed samples against decoding a FLAC file for each; log-mel features against torchaudio's.

Run: `python -m pytest --benchmark-only benchmarks/data/test_librispeech_audio.py -s`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from algoperf_torch.data.packed import Job, Packing, PartWriter, pack
from algoperf_torch.spec import Split
from algoperf_torch.workloads.librispeech.features import LogMel
from algoperf_torch.workloads.librispeech.prepare import DATASET, PREPARATION, TOKENIZER, train_tokenizer
from algoperf_torch.workloads.registry import build_workload

UTTERANCES, SECONDS = 64, 12.3  # the mean length in LibriSpeech
SAMPLES = int(SECONDS * 16_000)
WAVEFORM_GOAL, FEATURE_GOAL = 10.0, 1.0


def sounds() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    time = np.arange(SAMPLES) / 16_000
    waves = [
        np.sin(2 * np.pi * pitch * time * (1 + 0.1 * np.sin(time))) for pitch in random.uniform(100, 300, UTTERANCES)
    ]
    return [(3_000 * wave + random.normal(0, 200, SAMPLES)).astype(np.int16) for wave in waves]


def write(writer: PartWriter, recordings: list[np.ndarray]) -> None:
    for samples in recordings:
        writer.append_ragged("audio", samples, np.array([len(samples)]))
        writer.append_ragged("targets", np.array([5, 2], dtype=np.int32), np.array([2]))


def test_waveforms(race, tmp_path: Path):
    recordings = sounds()
    for number, samples in enumerate(recordings):
        soundfile.write(tmp_path / f"{number}.flac", samples, 16_000, subtype="PCM_16")

    transcript = tmp_path / "1-1.trans.txt"
    transcript.write_text("".join(f"1-1-{number:04} THE {word} IS HERE\n" for number, word in enumerate("ABCDEFGH")))

    def fill(packing: Packing) -> dict:
        packing.asset(TOKENIZER, lambda path: train_tokenizer(path, [transcript]))
        packing.run([Job(split, "all", recordings) for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)], write)
        return {}

    pack(tmp_path / "librispeech", fill, dataset=DATASET, preparation=PREPARATION, settings={})
    workload = build_workload("librispeech_conformer", tmp_path)
    workload.open()
    make = workload.train_batches(seed=0, global_batch_size=UTTERANCES, rank=0, world_size=1)
    draws = iter(range(1_000))

    def ours() -> None:
        make(next(draws))

    def peer() -> None:
        batch = np.zeros((UTTERANCES, 320_000), dtype=np.int16)
        for number in range(UTTERANCES):
            samples, _ = soundfile.read(tmp_path / f"{number}.flac", dtype="int16")
            batch[number, : len(samples)] = samples

    assert race(ours, peer, unit="utterances", work=UTTERANCES) >= WAVEFORM_GOAL


def test_log_mel_features(race):
    audio = torch.from_numpy(np.stack(sounds()[:8])).float()
    paddings = torch.zeros_like(audio)
    front_end = LogMel()
    spectrogram = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=512, win_length=400, hop_length=160, f_min=125.0, f_max=7_600.0, n_mels=80, center=False
    )

    def peer() -> torch.Tensor:
        mels = spectrogram(torchaudio.functional.preemphasis(audio * 2.0**-15, 0.97)).transpose(1, 2)
        return (torch.log(mels.clamp_min(1e-5)) - front_end.mean) / front_end.std

    ratio = race(lambda: front_end(audio, paddings), peer, unit="seconds of audio", work=8 * SECONDS)
    assert ratio >= FEATURE_GOAL
