"""Documents to windows of tokens, uint16 [windows, 1025].

Raw: any number of `.parquet` files with a column `text`, or of `.txt` files (plain or gzip) with a document on each line,
anywhere below the folder; and GPT-2's tokenizer (`--set tokenizer=DIR`, else the folder `tokenizer` beside the files).

All documents are put into one random order. The first nine tenths are the training split, the rest is the validation split.
Each split is one stream of tokens, cut into windows that do not overlap; what is left over at its end is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, Ragged, pack, source_files
from algoperf_torch.data.raw import read_blocks
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.finewebedu_lm.tokenizer import Tokenizer

PREPARATION = 1
SETTINGS = {"tokenizer": Path}
WINDOW = 1_025  # tokens
TRAIN_SHARE = 0.9
ORDER_SEED = 0
DOCUMENTS_PER_CHUNK = 256
WINDOWS_PER_WRITE = 4_096
ORDER_CHUNK = 65_536


class Documents(NamedTuple):
    """A file of documents, to be encoded with a tokenizer."""

    path: Path
    tokenizer: Path


class Stream(NamedTuple):
    """The documents of a split: folders of encoded parts, the number of documents in each, and which split it is."""

    folders: tuple[Path, ...]
    sizes: tuple[int, ...]
    split: Split


def prepare(
    raw: Path,
    out: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
    tokenizer: Path | None = None,
) -> Manifest:
    """Packs the folder `raw` as `out`. Raises `DataError` and `UsageError`."""
    paths = sorted(
        path for path in raw.rglob("*") if path.suffix in (".parquet", ".txt") or path.name.endswith(".txt.gz")
    )
    paths = [path for path in paths if path.name != "merges.txt"]
    if not paths:
        raise DataError(f"{raw} holds neither .parquet nor .txt files.")
    given = tokenizer or raw / "tokenizer"
    if not given.exists():
        raise DataError(
            f"There is no tokenizer {given}. Add --set tokenizer=DIR, where DIR holds GPT-2's vocab.json and merges.txt."
        )
    read_tokenizer = Tokenizer(given)
    described = read_manifest(raw)

    def fill(packing: Packing) -> dict[str, Any]:
        model = packing.asset("tokenizer.json", read_tokenizer.save)
        jobs = [
            Job(Split.TRAIN, f"documents-{number:05d}", Documents(path, model)) for number, path in enumerate(paths)
        ]
        records = packing.run(jobs, write_documents, scratch=True)
        folders = tuple(packing.folder / record.split / record.name for record in records)
        sizes = tuple(record.examples for record in records)
        splits = (Split.TRAIN, Split.VALIDATION)
        packing.run([Job(split, "windows", Stream(folders, sizes, split)) for split in splits], write_windows)
        return {"vocab_size": read_tokenizer.vocab_size, "documents": sum(sizes)}

    files = [given] if given.is_file() else sorted(path for path in given.iterdir() if path.is_file())
    return pack(
        out,
        fill,
        dataset="finewebedu_lm",
        preparation=PREPARATION,
        settings={"raw": source_files(paths, raw), "tokenizer": source_files(files, given.parent)},
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def read_documents(path: Path) -> Iterator[list[str]]:
    """Documents of a file, some at a time. Raises `DataError`."""
    yield from read_parquet(path) if path.suffix == ".parquet" else read_text(path)


def read_parquet(path: Path) -> Iterator[list[str]]:
    import pyarrow as pa
    from pyarrow import parquet

    done = 0
    try:
        file = parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise DataError(f"{path} has no column `text`, but {', '.join(file.schema_arrow.names)}.")
        for batch in file.iter_batches(batch_size=DOCUMENTS_PER_CHUNK, columns=["text"]):
            yield [document or "" for document in batch.column(0).to_pylist()]
            done += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path} after document {done}: {error}.") from error


def read_text(path: Path) -> Iterator[list[str]]:
    done = 0
    for block in read_blocks(path):
        documents = []
        for line in block[:-1].split(b"\n"):
            done += 1
            try:
                documents.append(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: line {done} is not UTF-8 ({error.reason}).") from error
        for start in range(0, len(documents), DOCUMENTS_PER_CHUNK):
            yield documents[start : start + DOCUMENTS_PER_CHUNK]


def write_documents(part: PartWriter, source: Documents) -> None:
    """Ragged `tokens`, one row for each document, empty ones included."""
    tokenizer = Tokenizer(source.tokenizer)
    for documents in read_documents(source.path):
        encoded = tokenizer.encode(documents)
        part.append_ragged("tokens", np.concatenate(encoded), np.array([len(tokens) for tokens in encoded]))


def split_order(num_documents: int, split: Split) -> NDArray[np.int64]:
    """Numbers of a split's documents, in the order of its stream. One permutation serves both splits."""
    order = np.random.Generator(np.random.Philox(key=ORDER_SEED)).permutation(num_documents)
    num_train = int(TRAIN_SHARE * num_documents)
    return order[:num_train] if split is Split.TRAIN else order[num_train:]


def write_windows(part: PartWriter, stream: Stream) -> None:
    pieces: list[NDArray[np.uint16]] = []
    waiting = 0
    for document in documents_in_order(stream):
        pieces.append(document)
        waiting += len(document)
        if waiting >= WINDOWS_PER_WRITE * WINDOW:
            pieces = [append_windows(part, pieces)]
            waiting = len(pieces[0])
    append_windows(part, pieces)


def append_windows(part: PartWriter, pieces: Sequence[NDArray[np.uint16]]) -> NDArray[np.uint16]:
    """Writes all whole windows and returns the rest."""
    tokens = np.concatenate([np.empty(0, dtype=np.uint16), *pieces])
    whole = len(tokens) // WINDOW * WINDOW
    if whole:
        part.append("windows", tokens[:whole].reshape(-1, WINDOW))
    return tokens[whole:]


def documents_in_order(stream: Stream) -> Iterator[NDArray[np.uint16]]:
    load = partial(np.load, mmap_mode="r")
    parts = [Ragged(load(folder / "tokens.npy"), load(folder / "tokens_offsets.npy")) for folder in stream.folders]
    order = split_order(sum(stream.sizes), stream.split)
    starts = np.cumsum([0, *stream.sizes])
    owners = np.searchsorted(starts, order, side="right") - 1
    rows = order - starts[owners]
    for first in range(0, len(order), ORDER_CHUNK):  # Python numbers of all documents would take a gigabyte
        chunk = slice(first, first + ORDER_CHUNK)
        for owner, row in zip(owners[chunk].tolist(), rows[chunk].tolist(), strict=True):
            yield parts[owner][row]
