"""Prepared data: flat arrays in parts, memory-mapped, written once.

A packed folder::

    manifest.json                        sizes, checksums, counts (`data/manifest.py`); `facts` describe the parts
    <asset>                              whatever else the dataset needs, such as a tokenizer
    <split>/<part>/<array>.npy           one row per example
    <split>/<part>/<array>.npy           concatenated values of ragged rows, with ...
    <split>/<part>/<array>_offsets.npy   ... int64 [examples + 1], where each row begins

`pack` writes one: in a hidden folder beside the target, part by part, each recorded when it is complete, so that a killed
preparation goes on where it was; the folder gets its name last. `Packed` opens one and maps its arrays.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.data.manifest import FileRecord, Manifest, digest, read_manifest, write_manifest
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Split

Array = NDArray[Any]
Progress = Callable[[int, int, str], None]  # parts done, parts in all, name of the part just done

STAMPS = "stamps.json"  # size and modification time of every file when its checksum was last found right
JOURNAL = ".journal"
SETTINGS = ".settings.json"


class Job(NamedTuple):
    """One part to be written: examples of one split, from `source` (anything that can be pickled)."""

    split: Split
    name: str
    source: Any


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What the manifest says of a part."""

    split: str
    name: str
    examples: int
    files: tuple[FileRecord, ...]


# -------------------------------------------------------------------------------------------------------------- writing


class PartWriter:
    """Appends rows to the arrays of one part. Nothing is kept in memory but the lengths of ragged rows."""

    def __init__(self, folder: Path, job: Job) -> None:
        self.job = job
        self.folder = folder
        self._name = f"{job.split.value}/{job.name}"
        self._files: dict[str, _ArrayFile] = {}
        self._lengths: dict[str, list[Array]] = {}
        self._flat: set[str] = set()

    def append(self, array: str, rows: Array) -> None:
        """Appends rows [n, ...]; dtype and the shape of a row are those of the first call."""
        self._file(array, rows).append(rows)

    def append_ragged(self, array: str, values: Array, lengths: Array) -> None:
        """Appends `len(lengths)` rows of the given lengths, which lie one after the other in `values`."""
        if int(lengths.sum()) != len(values):
            raise ValueError(f"{array}: lengths add up to {int(lengths.sum())}, there are {len(values)} values.")
        self._file(array, values).append(values)
        self._lengths.setdefault(array, []).append(np.asarray(lengths, dtype=np.int64))

    def append_flat(self, array: str, values: Array) -> None:
        """Appends rows of an array that does not go by examples, such as one beside the values of a ragged one."""
        self._file(array, values).append(values)
        self._flat.add(array)

    def _file(self, array: str, rows: Array) -> _ArrayFile:
        if array not in self._files:
            folder = self.folder / self._name
            folder.mkdir(parents=True, exist_ok=True)
            self._files[array] = _ArrayFile(folder / f"{array}.npy", rows.dtype, rows.shape[1:])
        return self._files[array]

    def close(self) -> PartRecord:
        """Completes the files. Raises `DataError` for a part without examples."""
        for array, lengths in self._lengths.items():
            offsets = np.concatenate([np.zeros(1, dtype=np.int64), *lengths]).cumsum()
            self.append(f"{array}_offsets", offsets)
        others = self._flat | self._lengths.keys()
        counts = {
            name: file.length - name.endswith("_offsets") for name, file in self._files.items() if name not in others
        }
        examples = max(counts.values(), default=0)
        if examples == 0:
            raise DataError(f"Nothing to pack in {self._name}: the source holds no examples.")
        if len(set(counts.values())) > 1:
            raise ValueError(f"Arrays of {self._name} have different numbers of examples: {counts}.")
        for file in self._files.values():
            file.close()
        names = [f"{self._name}/{array}.npy" for array in sorted(self._files)]
        records = tuple(_file_record(self.folder, name) for name in names)
        return PartRecord(split=self.job.split.value, name=self.job.name, examples=examples, files=records)

    def abandon(self) -> None:
        for file in self._files.values():
            file.abandon()


class _ArrayFile:
    """A `.npy` file that grows along its first dimension."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self.length = 0
        self._dtype = dtype.newbyteorder("<")
        self._row_shape = row_shape
        self._path = path
        self._file: IO[bytes] = path.open("wb")
        self._header_size = self._write_header()

    def append(self, rows: Array) -> None:
        if rows.shape[1:] != self._row_shape or rows.dtype != self._dtype:
            raise ValueError(
                f"{self._path.name} holds {self._dtype} rows of shape {self._row_shape}, "
                f"not {rows.dtype} of {rows.shape[1:]}."
            )
        self._file.write(np.ascontiguousarray(rows).data.cast("B") if rows.size else b"")
        self.length += len(rows)

    def _write_header(self) -> int:
        np.lib.format.write_array_header_1_0(
            self._file,
            {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length, *self._row_shape)},
        )
        return self._file.tell()

    def close(self) -> None:
        self._file.seek(0)
        assert self._write_header() == self._header_size  # numpy leaves room for a longer first dimension
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        self._file.close()


class Packing:
    """A packed folder that is being written; see `pack`."""

    def __init__(self, folder: Path, *, workers: int = 1, progress: Progress | None = None) -> None:
        self.folder = folder
        self.assets: list[str] = []
        self.parts: list[PartRecord] = []
        self._workers = workers
        self._progress = progress or (lambda _done, _total, _name: None)

    def asset(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file of the folder beside the arrays, made by `make(path)` unless an earlier run has done so."""
        path = self.folder / name
        if not path.exists():
            partial = path.with_name(f".{name}.partial")
            make(partial)
            partial.replace(path)
        self.assets.append(name)
        return path

    def run(
        self, jobs: Sequence[Job], write: Callable[[PartWriter, Any], None], *, scratch: bool = False
    ) -> list[PartRecord]:
        """Writes a part for each job with `write(part, source)`, but those that an earlier run completed.

        `write` is a function of a module, since other processes call it. Parts stand in the order of the jobs. Scratch
        parts serve later ones of the same preparation and are removed at its end.
        """
        done: dict[int, PartRecord] = {}
        missing: list[int] = []
        for index, job in enumerate(jobs):
            record = _read_journal(self.folder, job)
            if record is None:
                missing.append(index)
            else:
                done[index] = record
        for index, record in self._write_parts(jobs, missing, write):
            done[index] = record
            self._progress(len(done), len(jobs), f"{record.split}/{record.name}")
        records = [done[index] for index in range(len(jobs))]
        self.parts += [] if scratch else records
        return records

    def join(self, split: Split) -> None:
        """Makes one part of all parts of a split, in their order, so that its arrays can be mapped as one."""
        parts = [part for part in self.parts if part.split == split.value]
        if len(parts) < 2:
            return
        job = Job(split, "joined", [(part.name, part.examples) for part in parts])
        record = _read_journal(self.folder, job) or _write_part(self.folder, job, _copy_parts)
        self.parts[:] = [part for part in self.parts if part.split != split.value] + [record]

    def _write_parts(
        self, jobs: Sequence[Job], missing: Sequence[int], write: Callable[[PartWriter, Any], None]
    ) -> Iterator[tuple[int, PartRecord]]:
        if self._workers <= 1 or len(missing) <= 1:
            for index in missing:
                yield index, _write_part(self.folder, jobs[index], write)
            return
        # Fresh interpreters: a fork of a process that has threads (torch, BLAS) may hang.
        with ProcessPoolExecutor(min(self._workers, len(missing)), mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(_write_part, self.folder, jobs[index], write): index for index in missing}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BrokenProcessPool as error:
                raise DataError(
                    "A worker process was killed, probably for want of memory. Run the preparation again with fewer "
                    "workers; it goes on where it was."
                ) from error
            finally:
                for future in futures:
                    future.cancel()


def _copy_parts(writer: PartWriter, sources: Sequence[tuple[str, int]]) -> None:
    parts = [PackedPart(writer.folder / writer.job.split.value / name, name, examples) for name, examples in sources]
    names = sorted(path.stem for path in parts[0].files())
    for name in names:
        if name.endswith("_offsets"):
            continue
        ragged = f"{name}_offsets" in names
        by_example = all(len(part.array(name)) == part.num_examples for part in parts)
        for part in parts:
            if ragged:
                writer.append_ragged(name, part.array(name), part.ragged(name).lengths)
            elif by_example:
                writer.append(name, part.array(name))
            else:
                writer.append_flat(name, part.array(name))


def _write_part(folder: Path, job: Job, write: Callable[[PartWriter, Any], None]) -> PartRecord:
    writer = PartWriter(folder, job)
    try:
        with disk_errors(folder):
            write(writer, job.source)
            record = writer.close()
            _write_json(_journal(folder, job), asdict(record))
    finally:
        writer.abandon()
    return record


def _journal(folder: Path, job: Job) -> Path:
    return folder / JOURNAL / f"{job.split.value}-{job.name}.json"


def _read_journal(folder: Path, job: Job) -> PartRecord | None:
    try:
        return _part_record(json.loads(_journal(folder, job).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _part_record(raw: Mapping[str, Any]) -> PartRecord:
    return PartRecord(**{**raw, "files": tuple(FileRecord(**file) for file in raw["files"])})


def _file_record(folder: Path, name: str) -> FileRecord:
    return FileRecord(name=name, bytes=(folder / name).stat().st_size, sha256=digest(folder / name))


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission below `folder` into `DataError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"No space left while writing {folder}: {shutil.disk_usage(folder).free:,} bytes are free. Make room and "
                "run the preparation again; it goes on where it was."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(
                f"Cannot write {error.filename or folder}: {error.strerror}. Choose another --out."
            ) from error
        raise


def source_files(paths: Sequence[Path], root: Path) -> list[list[Any]]:
    """Name, size and modification time of raw files: part of the settings, so that other files start a new preparation.

    Raises `DataError` for one that is missing.
    """
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"Missing raw file {path} ({error.strerror}).") from error
        found.append([path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns])
    return found


def pack(
    out: Path,
    fill: Callable[[Packing], Mapping[str, Any]],
    *,
    dataset: str,
    preparation: int,
    settings: Mapping[str, Any],
    described: Manifest | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Writes the packed folder `out`: it appears complete, with its manifest, or not at all.

    Args:
        fill: writes assets and parts through `Packing` and returns the dataset's own facts for the manifest.
        dataset, preparation: as in `Manifest`.
        described: manifest of the raw files, if they have one; what it says of synthetic data holds for the packed ones.
        settings: what the result depends on (raw files, options), as JSON values. A preparation that was interrupted is
            continued if it had the same settings, and begun anew otherwise; a finished one is left alone.
        workers: processes that write parts.

    Raises `UsageError` where `out` holds something else and `overwrite` is off, or another process is writing it, and
    `DataError` for bad raw data or a full disk.
    """
    settings = json.loads(json.dumps({"dataset": dataset, "preparation": preparation, **settings}))
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out.parent):
        partial.mkdir(parents=True, exist_ok=True)
    with _lock(partial, out), disk_errors(partial):
        existing = read_manifest(out) if out.is_dir() else None
        if existing is not None and existing.facts.get("settings") == settings and not overwrite:
            shutil.rmtree(partial)
            return existing
        if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
            shutil.rmtree(partial)
            raise UsageError(
                f"{out} exists already and holds something else. Choose another --out, or add --overwrite."
            )
        _begin(partial, settings)
        packing = Packing(partial, workers=workers, progress=progress)
        facts = fill(packing)
        manifest = _manifest(packing, dataset, preparation, described, {**facts, "settings": settings})
        shutil.rmtree(partial / JOURNAL)
        _remove_scratch(partial, packing.parts)
        (partial / SETTINGS).unlink()
        write_manifest(partial, manifest)
        stamp(partial, manifest)
        if out.is_dir():
            shutil.rmtree(out)
        partial.replace(out)
    (out / ".lock").unlink(missing_ok=True)
    return manifest


def _remove_scratch(folder: Path, parts: Sequence[PartRecord]) -> None:
    """Parts that others were made from have served."""
    kept = {folder / part.split / part.name for part in parts}
    for split in Split:
        for path in (folder / split.value).glob("*"):
            if path not in kept:
                shutil.rmtree(path)


def _begin(partial: Path, settings: Mapping[str, Any]) -> None:
    """Leaves the parts of an interrupted run where it had the same settings, else an empty folder."""
    try:
        same = json.loads((partial / SETTINGS).read_text(encoding="utf-8")) == settings
    except FileNotFoundError:
        same = False
    if not same:
        for path in partial.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        _write_json(partial / SETTINGS, settings)
    (partial / JOURNAL).mkdir(exist_ok=True)


@contextmanager
def _lock(partial: Path, out: Path) -> Iterator[None]:
    """Held by one process at a time, and given back by the system when it dies."""
    with disk_errors(partial), (partial / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"Another process is preparing {out}. Wait for it, or choose another --out.") from error
        yield


def _manifest(
    packing: Packing, dataset: str, preparation: int, described: Manifest | None, facts: Mapping[str, Any]
) -> Manifest:
    examples: dict[str, int] = {}
    for part in packing.parts:
        examples[part.split] = examples.get(part.split, 0) + part.examples
    files = [_file_record(packing.folder, name) for name in packing.assets]
    files += [file for part in packing.parts for file in part.files]
    parts = [[part.split, part.name, part.examples] for part in packing.parts]
    return Manifest(
        dataset=dataset,
        examples=examples,
        files=tuple(files),
        synthetic=described is not None and described.synthetic,
        generation=None if described is None else described.generation,
        preparation=preparation,
        facts={**facts, "parts": parts},
    )


# -------------------------------------------------------------------------------------------------------------- reading


class Ragged(NamedTuple):
    """Rows of different lengths: row i is `values[offsets[i] : offsets[i + 1]]`."""

    values: Array
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> Array:  # type: ignore[override]
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


class PackedPart:
    """The arrays of one part, mapped on first use."""

    def __init__(self, folder: Path, name: str, num_examples: int) -> None:
        self.name = name
        self.num_examples = num_examples
        self._folder = folder
        self._arrays: dict[str, Array] = {}

    def files(self) -> list[Path]:
        return sorted(self._folder.glob("*.npy"))

    def array(self, name: str) -> Array:
        """Read-only array, one row per example (or the bare values of a ragged one)."""
        if name not in self._arrays:
            path = self._folder / f"{name}.npy"
            try:
                self._arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"Cannot map {path}: {error}. Prepare the data again.") from error
        return self._arrays[name]

    def read(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop` as an array of their own, read without mapping them.

        For streams over gigabytes: mapped pages count as memory of the process until the system wants them back.
        """
        mapped = self.array(name)
        rows = np.empty((stop - start, *mapped.shape[1:]), dtype=mapped.dtype)
        path = self._folder / f"{name}.npy"
        assert isinstance(mapped, np.memmap)
        offset = mapped.offset + start * rows.dtype.itemsize * math.prod(rows.shape[1:])
        missing = rows.reshape(-1).view(np.uint8).data
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                while missing:
                    count = file.readinto(missing)
                    if not count:
                        raise DataError(f"{path} ends early: truncated since it was opened. Prepare the data again.")
                    missing = missing[count:]
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
        return rows

    def ragged(self, name: str) -> Ragged:
        return Ragged(self.array(name), self.array(f"{name}_offsets"))


class PackedSplit:
    """The parts of a split, in order. Example i of the split is in the part that `locate` names."""

    def __init__(self, parts: Sequence[PackedPart]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(part.num_examples for part in parts)], dtype=np.int64)

    @property
    def num_examples(self) -> int:
        return int(self.starts[-1])

    def locate(self, index: int) -> tuple[PackedPart, int]:
        """The part that holds an example, and its row in it."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part], index - int(self.starts[part])

    def slice(self, name: str, start: int, stop: int) -> Array:
        """Rows `start` to `stop` of an array, across parts; a view where one part holds them all."""
        pieces = [part.array(name)[first:last] for part, first, last in self._pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read(self, name: str, start: int, stop: int) -> Array:
        """`slice` as an array of its own, read as `PackedPart.read` does."""
        pieces = [part.read(name, first, last) for part, first, last in self._pieces(start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[PackedPart, int, int]]:
        """The parts that hold the rows `start` to `stop` of the split, and which of their own rows these are."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for part, begin in zip(self.parts[first:], self.starts[first:].tolist(), strict=False):
            if begin >= stop:
                break
            yield part, max(start - begin, 0), min(stop - begin, part.num_examples)

    def take(self, name: str, index: NDArray[np.int64]) -> Array:
        """Rows of an array in any order, across parts."""
        if len(self.parts) == 1:
            return self.parts[0].array(name)[index]
        owner = np.searchsorted(self.starts, index, side="right") - 1
        first = self.parts[0].array(name)
        rows = np.empty((len(index), *first.shape[1:]), dtype=first.dtype)
        for part in np.unique(owner):
            mine = owner == part
            rows[mine] = self.parts[part].array(name)[index[mine] - self.starts[part]]
        return rows


class Packed:
    """An opened packed folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path | None, *, dataset: str, preparation: int) -> Self:
        """Checks and opens a folder.

        Sizes are compared with the manifest; checksums only of files that were changed (or copied) since their checksum
        was last found right. Raises `DataError` that names the file, and `UsageError` without a folder.
        """
        if folder is None:
            raise UsageError(f"{dataset} needs prepared data: add --data-dir DIR, where DIR/{dataset} holds them.")
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(
                f"{folder} holds no prepared data (no manifest.json). "
                f"Write it with: algoperf data prepare {dataset} --raw RAW --out {folder}"
            )
        if manifest.dataset != dataset or manifest.preparation != preparation:
            raise DataError(
                f"{folder} holds {manifest.dataset!r}, preparation {manifest.preparation}; {dataset!r}, preparation "
                f"{preparation}, is needed. Prepare the data again."
            )
        parts = manifest.facts.get("parts")
        if not isinstance(parts, list) or not all(isinstance(part, list) and len(part) == 3 for part in parts):
            raise DataError(
                f"{folder} holds no prepared data (its manifest does not list any parts). "
                f"Write them with: algoperf data prepare {dataset} --raw RAW --out OUT"
            )
        check_stamped(folder, manifest)
        return cls(folder, manifest)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        return self.manifest.facts

    def split(self, split: Split) -> PackedSplit:
        """Raises `DataError` where the folder holds none of it."""
        parts = [
            PackedPart(self.folder / split.value / name, name, examples)
            for owner, name, examples in self.facts["parts"]
            if owner == split.value
        ]
        if not parts:
            raise DataError(f"{self.folder} has no {split} split.")
        return PackedSplit(parts)

    def files(self, split: Split) -> list[Path]:
        """All array files of a split."""
        return [self.folder / file.name for file in self.manifest.files if file.name.startswith(f"{split.value}/")]


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def stamp(folder: Path, manifest: Manifest) -> None:
    """Notes size and modification time of files whose checksums are known to be right."""
    _write_json(folder / STAMPS, {file.name: _stat(folder / file.name) for file in manifest.files})


def check_stamped(folder: Path, manifest: Manifest) -> None:
    """Checks all sizes, and the checksums of files that do not look as they did when last checked."""
    try:
        stamps: dict[str, list[int]] = json.loads((folder / STAMPS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stamps = {}
    manifest.check(folder, sums=False)
    changed = [file for file in manifest.files if stamps.get(file.name) != _stat(folder / file.name)]
    for file in changed:
        file.check(folder)
    if changed and os.access(folder, os.W_OK):
        stamp(folder, manifest)
