"""Packs LibriSpeech: 16-bit samples and word pieces of every utterance that is short enough.

Raw layout, as the owner's archives unpack::

    LibriSpeech/<subset>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt      one line `<utterance> <TRANSCRIPT>` each
    LibriSpeech/<subset>/<speaker>/<chapter>/<speaker>-<chapter>-<nnnn>.flac    mono, 16 kHz, 16 bits
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
import soundfile
from numpy.typing import NDArray

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, pack, source_files
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.librispeech.features import SAMPLE_RATE

DATASET = "librispeech"
PREPARATION = 1
ROOT = "LibriSpeech"
SUBSETS = {
    Split.TRAIN: ("train-clean-100", "train-clean-360", "train-other-500"),
    Split.VALIDATION: ("dev-clean", "dev-other"),
    Split.TEST: ("test-clean",),
}
TOKENIZER_SUBSET = "train-clean-100"
TOKENIZER = "tokenizer.model"
VOCABULARY_SIZE = 1024
MAX_CHARACTERS = 256  # of a transcript
MAX_SAMPLES = 320_000
CHAPTERS_PER_PART = 128  # every array of a part is an open file while training

_LINE = re.compile(r"(?P<utterance>[0-9]+-[0-9]+-[0-9]+) (?P<text>[A-Z' ]*[A-Z'][A-Z' ]*)")


class Utterance(NamedTuple):
    audio: Path
    text: str


def prepare(
    raw: Path, out: Path, *, workers: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Packs the utterances below `raw` into the folder `out`, with a tokenizer trained on `train-clean-100`.

    Raises `DataError` that names the file and, for a transcript, the line.
    """
    root = raw / ROOT if (raw / ROOT).is_dir() else raw
    transcripts = {subset: find_transcripts(root / subset) for subsets in SUBSETS.values() for subset in subsets}
    stamp = json.dumps(source_files([path for paths in transcripts.values() for path in paths], root))
    counts = {subset: sum(len(read_chapter(path)) for path in paths) for subset, paths in transcripts.items()}

    def fill(packing: Packing) -> Mapping[str, Any]:
        tokenizer = packing.asset(TOKENIZER, lambda path: train_tokenizer(path, transcripts[TOKENIZER_SUBSET]))
        jobs = [
            Job(
                split,
                f"{subset}_{start // CHAPTERS_PER_PART:03d}",
                (tokenizer, paths[start : start + CHAPTERS_PER_PART]),
            )
            for split, subsets in SUBSETS.items()
            for subset in subsets
            for paths in [transcripts[subset]]
            for start in range(0, len(paths), CHAPTERS_PER_PART)
        ]
        packing.run(jobs, write_part)
        return {"utterances": counts, "kept": sum(part.examples for part in packing.parts)}

    described = read_manifest(raw)
    return pack(
        out,
        fill,
        dataset=DATASET,
        preparation=PREPARATION,
        settings={"transcripts": hashlib.sha256(stamp.encode()).hexdigest()},
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def find_transcripts(subset: Path) -> list[Path]:
    """The transcript of every chapter, sorted. Raises `DataError` for a chapter that has none, or an absent subset."""
    if not subset.is_dir():
        raise DataError(
            f"There is no folder {subset}. Unpack the owner's archive {subset.name}.tar.gz beside the others."
        )
    paths = []
    for chapter in sorted(subset.glob("*/*/")):
        path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        if not path.is_file():
            raise DataError(f"Missing transcript {path}. Unpack the owner's archive again.")
        paths.append(path)
    if not paths:
        raise DataError(f"{subset} holds no <speaker>/<chapter> folders.")
    return paths


def read_chapter(path: Path) -> list[Utterance]:
    """The utterances of one transcript file, in its order. Raises `DataError` for a malformed line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read transcript {path}: {error}.") from error
    utterances = []
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is not `<speaker>-<chapter>-<number> TRANSCRIPT` in A-Z, ' and space."
            )
        utterances.append(Utterance(path.with_name(f"{match['utterance']}.flac"), match["text"]))
    if not utterances:
        raise DataError(f"{path} is empty.")
    return utterances


def train_tokenizer(path: Path, transcripts: Sequence[Path]) -> None:
    """Writes a SentencePiece unigram model of (at most) 1024 pieces, trained on the transcripts in sorted order."""

    def sentences() -> Iterator[str]:
        for transcript in transcripts:
            for utterance in read_chapter(transcript):
                yield utterance.text

    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=file,
            model_type="unigram",
            vocab_size=VOCABULARY_SIZE,
            character_coverage=1.0,
            hard_vocab_limit=False,  # small data have fewer pieces; the owner's have enough
            minloglevel=2,
        )


def write_part(writer: PartWriter, source: tuple[Path, Sequence[Path]]) -> None:
    """Samples and piece ids of the utterances that are kept; every id sequence ends with the end of the sentence."""
    tokenizer_path, transcripts = source
    tokenizer = load_tokenizer(tokenizer_path)
    for transcript in transcripts:
        for utterance in read_chapter(transcript):
            samples = read_audio(utterance.audio)
            if len(utterance.text) > MAX_CHARACTERS or len(samples) > MAX_SAMPLES:
                continue
            pieces = np.array([*tokenizer.encode(utterance.text), tokenizer.eos_id()], dtype=np.int32)
            writer.append_ragged("audio", samples, np.array([len(samples)]))
            writer.append_ragged("targets", pieces, np.array([len(pieces)]))


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Raises `DataError` for a file that is no SentencePiece model."""
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise DataError(f"Cannot read the tokenizer {path}: {error}.") from error


def read_audio(path: Path) -> NDArray[np.int16]:
    """All samples of a FLAC file, as the 16-bit integers that it stores. Raises `DataError`."""
    try:
        with soundfile.SoundFile(path) as file:
            if (file.samplerate, file.channels, file.subtype) != (SAMPLE_RATE, 1, "PCM_16"):
                raise DataError(
                    f"{path}: {file.samplerate} Hz, {file.channels} channels, {file.subtype}; expected 16000 Hz, 1, PCM_16."
                )
            samples: NDArray[np.int16] = file.read(dtype="int16")
            if len(samples) != file.frames or len(samples) == 0:
                raise DataError(f"{path} is truncated: {len(samples):,} of {file.frames:,} samples. Get it again.")
    except (OSError, soundfile.LibsndfileError) as error:
        raise DataError(f"Cannot read {path}: {error}. It is missing, truncated or no FLAC file.") from error
    return samples
