"""Parallel text to token ids: WMT17 German-English for training, newstest2013 and newstest2014.

Raw, with or without the folders: `training/europarl-v7.de-en.{de,en}`, `commoncrawl.de-en.{de,en}`,
`training/news-commentary-v12.de-en.{de,en}`, `rapid2016.de-en.{de,en}`, `dev/newstest2013.{de,en}` and
`dev/newstest2014-deen-{src.de,ref.en}.sgm`; text may be gzip. Lines are aligned by number.

Packed: `sentencepiece.model`; ragged `source` (German) and `target` (English) uint16 token ids with EOS, `source_count`
and `target_count` uint16, the numbers of tokens that are not 0. Pairs with more than 256 tokens on a side are left out.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, pack, source_files
from algoperf_torch.data.raw import find_raw, read_blocks
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.wmt.tokenizer import TRAINING_BYTES, VOCAB_SIZE, Tokenizer, train_tokenizer

PREPARATION = 1
SETTINGS = {"vocab_size": int, "tokenizer": Path}
MAX_TOKENS = 256
TRAINING_CORPORA = (
    "training/europarl-v7.de-en",
    "commoncrawl.de-en",
    "training/news-commentary-v12.de-en",
    "rapid2016.de-en",
)
EVALUATION = {
    Split.VALIDATION: ("dev/newstest2013.de", "dev/newstest2013.en"),
    Split.TEST: ("dev/newstest2014-deen-src.de.sgm", "dev/newstest2014-deen-ref.en.sgm"),
}
SYNTHETIC_VOCAB_SIZE = 192
LINES_PER_PART = 200_000
PAIRS_PER_CHUNK = 4_096
SAMPLE_SEED = 0
SEGMENT = re.compile(r'<seg id="[^"]*">(.*?)</seg>')


class PairFiles(NamedTuple):
    """German and English file of a corpus."""

    german: Path
    english: Path


class Lines(NamedTuple):
    """Pairs `start` to `stop` of a corpus, to be encoded with a sentencepiece model."""

    files: PairFiles
    start: int
    stop: int
    model: Path


def prepare(
    raw: Path,
    out: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
    vocab_size: int | None = None,
    tokenizer: Path | None = None,
) -> Manifest:
    """Packs the folder `raw` as `out`.

    Args:
        vocab_size: pieces of the tokenizer that is trained here; 32,000, or at most 192 for synthetic data.
        tokenizer: an existing sentencepiece model to use instead.

    Raises `DataError` and `UsageError`.
    """
    corpora = [
        PairFiles(*(find_file(raw, f"{name}.{language}") for language in ("de", "en"))) for name in TRAINING_CORPORA
    ]
    evaluation = {split: PairFiles(*(find_file(raw, name) for name in names)) for split, names in EVALUATION.items()}
    files = [path for pair in (*corpora, *evaluation.values()) for path in pair]
    described = read_manifest(raw)
    synthetic = described is not None and described.synthetic
    settings: dict[str, Any] = {"raw": source_files(files, raw)}
    if tokenizer is None:
        settings["vocab_size"] = vocab_size or (SYNTHETIC_VOCAB_SIZE if synthetic else VOCAB_SIZE)
    else:
        settings["tokenizer"] = source_files([tokenizer], tokenizer.parent)

    def fill(packing: Packing) -> dict[str, Any]:
        sizes = [count_pairs(corpus) for corpus in corpora]
        if tokenizer is None:
            at_most = synthetic and vocab_size is None
            make = partial(
                train_on_pairs, corpora=corpora, sizes=sizes, vocab_size=settings["vocab_size"], at_most=at_most
            )
        else:
            make = partial(shutil.copyfile, tokenizer)
        model = packing.asset("sentencepiece.model", make)
        jobs = []
        for corpus, size in zip(corpora, sizes, strict=True):
            for number, start in enumerate(range(0, size, LINES_PER_PART)):
                lines = Lines(corpus, start, min(start + LINES_PER_PART, size), model)
                jobs.append(Job(Split.TRAIN, f"{corpus.german.name.split('.')[0]}-{number:03d}", lines))
        jobs += [Job(split, "newstest", Lines(pair, 0, count_pairs(pair), model)) for split, pair in evaluation.items()]
        packing.run(jobs, write_pairs)
        packing.join(Split.TRAIN)
        return {"vocab_size": Tokenizer(model).vocab_size}

    return pack(
        out,
        fill,
        dataset="wmt",
        preparation=PREPARATION,
        settings=settings,
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def find_file(raw: Path, name: str) -> Path:
    bare = Path(name).name
    return find_raw(raw, name, bare, f"{name}.gz", f"{bare}.gz")


def read_lines(path: Path) -> Iterator[str]:
    """The sentences of a file: its lines, or the segments of an SGML file. Raises `DataError` for what is not UTF-8."""
    number = 0
    is_sgml = ".sgm" in path.suffixes
    for block in read_blocks(path):
        # Only \n ends a line: the corpora hold other characters that Python takes for line ends.
        for line in block[:-1].split(b"\n"):
            number += 1
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: line {number} is not UTF-8 ({error.reason}).") from error
            if is_sgml:
                yield from (segment.strip() for segment in SEGMENT.findall(text))
            else:
                yield text


def count_pairs(files: PairFiles) -> int:
    """Number of aligned lines. Raises `DataError` where the two files differ."""
    german, english = (sum(1 for _ in read_lines(path)) for path in files)
    if german != english:
        raise DataError(f"{files.german} has {german:,} sentences, {files.english} {english:,}: they are not aligned.")
    return german


def read_pairs(files: PairFiles, start: int, stop: int) -> Iterator[tuple[str, str]]:
    """Pairs of lines, both without surrounding white space."""
    for german, english in islice(zip(*map(read_lines, files), strict=False), start, stop):
        yield german.strip(), english.strip()


def write_pairs(part: PartWriter, lines: Lines) -> None:
    tokenizer = Tokenizer(lines.model)
    pairs = (pair for pair in read_pairs(lines.files, lines.start, lines.stop) if all(pair))
    while chunk := list(islice(pairs, PAIRS_PER_CHUNK)):
        encoded = [tokenizer.encode(side) for side in zip(*chunk, strict=True)]
        kept = [pair for pair in zip(*encoded, strict=True) if max(map(len, pair)) <= MAX_TOKENS]
        for name, sentences in zip(("source", "target"), zip(*kept, strict=True), strict=False):
            lengths = np.array([len(sentence) for sentence in sentences])
            counts = np.array([np.count_nonzero(sentence) for sentence in sentences], dtype=np.uint16)
            part.append_ragged(name, np.concatenate(sentences), lengths)
            part.append(f"{name}_count", counts)


def train_on_pairs(path: Path, *, corpora: list[PairFiles], sizes: list[int], vocab_size: int, at_most: bool) -> None:
    """Trains the tokenizer on pairs from all corpora in random order, up to 10^7 bytes of text."""
    train_tokenizer(training_sentences(corpora, sizes), path, vocab_size, at_most=at_most)


def training_sentences(corpora: list[PairFiles], sizes: list[int]) -> Iterator[str]:
    """German and English sentence by turns, from pairs in an order that mixes all corpora, until there are 10^7 bytes."""
    order = np.random.Generator(np.random.Philox(key=SAMPLE_SEED)).permutation(sum(sizes))
    order = order[: TRAINING_BYTES // 20]  # more than enough: few pairs have less than 20 bytes
    rank = dict(zip(order.tolist(), range(len(order)), strict=True))
    found: dict[int, tuple[str, str]] = {}
    first = 0
    for corpus, size in zip(corpora, sizes, strict=True):
        for number, pair in enumerate(read_pairs(corpus, 0, size), start=first):
            if number in rank and all(pair):
                found[rank[number]] = pair
        first += size
    written = 0
    for place in sorted(found):
        if written >= TRAINING_BYTES:
            return
        yield from found[place]
        written += sum(len(side.encode()) + 1 for side in found[place])
