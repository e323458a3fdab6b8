"""Generated speech: by espeak-ng where it is installed, by formants elsewhere."""

import shutil

import numpy as np
import pytest
import soundfile

from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.workloads.librispeech import synth
from algoperf_torch.workloads.librispeech.prepare import read_audio, read_chapter

PROGRAM = shutil.which("espeak-ng")
synthesisers = pytest.mark.parametrize(
    "program",
    [None, pytest.param(PROGRAM, marks=pytest.mark.skipif(PROGRAM is None, reason="espeak-ng is not installed"))],
    ids=["formants", "espeak-ng"],
)


@synthesisers
def test_speech_and_transcripts(program, tmp_path, monkeypatch):
    monkeypatch.setattr(synth.shutil, "which", lambda name: program)
    files = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        counts = synth.synthesise(tmp_path / folder, num_train=6, seed=seed)
        assert counts == {"train": 6, "validation": 2, "test": 2}
        files.append({path.relative_to(tmp_path / folder): path for path in (tmp_path / folder).rglob("*.flac")})
    assert len(files[0]) == 6 + 2 + 2 + 1  # one is too long to be kept
    content = [{name: path.read_bytes() for name, path in some.items()} for some in files]
    assert content[0] == content[1]
    assert content[0] != content[2]
    spoken = [u for path in (tmp_path / "a").rglob("*.trans.txt") for u in read_chapter(path)]
    for utterance in spoken:
        samples = read_audio(utterance.audio)
        assert 0.03 < len(samples) / 16_000 / len(utterance.text) < 0.2  # seconds for a letter
        assert 1_000 < np.abs(samples.astype(np.int32)).max() < 8_000


def test_a_synthesiser_that_fails(tmp_path):
    broken = tmp_path / "espeak-ng"
    broken.write_text("#!/bin/sh\necho no voices >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(DataError, match=r"espeak-ng did not say 'NO ONE': no voices"):
        synth.speak_with(str(broken), "NO ONE", synth.Voice(100, 1.0))


@pytest.mark.skipif(PROGRAM is None, reason="espeak-ng is not installed")
def test_speakers_differ(tmp_path):
    low, high = (
        synth.speak_with(PROGRAM, "THE OLD MAN FOUND A BOAT", synth.Voice(pitch, tract))
        for pitch, tract in ((95, 0.9), (219.9, 1.0999))
    )
    soundfile.write(tmp_path / "low.flac", low, 16_000, subtype="PCM_16")
    assert np.array_equal(read_audio(tmp_path / "low.flac"), low)
    assert len(low) != len(high) or not np.array_equal(low, high)


def test_short_utterances_are_the_same_whatever_is_installed(tmp_path, monkeypatch):
    contents = []
    for program in (None, "/nowhere/espeak-ng"):
        monkeypatch.setattr(synth.shutil, "which", lambda name, program=program: program)
        folder = tmp_path / str(len(contents))
        synth.synthesise(folder, num_train=12, seed=0, words=5, letter_ms=30)
        contents.append([path.read_bytes() for path in sorted(folder.rglob("*.flac"))])
    assert contents[0] == contents[1]
    utterances = [u for path in (tmp_path / "0").rglob("*.trans.txt") for u in read_chapter(path)]
    short = [u for u in utterances if len(u.text) < 50]  # one is too long to be kept
    assert len(short) == len(utterances) - 1
    assert all(1 <= len(u.text.split()) <= 3 for u in short)
    assert len({word for u in short for word in u.text.split()}) <= 5
    assert max(len(read_audio(u.audio)) for u in short) < 16_000


@pytest.mark.parametrize("settings", [{"words": 0}, {"words": 48}, {"letter_ms": 4}], ids=str)
def test_settings_that_cannot_be(settings, tmp_path):
    with pytest.raises(UsageError, match=r"words to say|too short"):
        synth.synthesise(tmp_path / "raw", num_train=2, seed=0, **settings)
