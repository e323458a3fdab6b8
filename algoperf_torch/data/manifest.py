"""What a folder of data must contain: sizes, checksums and numbers of examples, in a `manifest.json` beside the files.

Everything that this package writes (synthetic raw data, prepared data) carries a manifest. It is written last, so a folder
that has one is complete. Files as their owner published them need none: their sizes and sums are in `datasets.toml`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Generation, Split, WorkloadSpec

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """One file: its path relative to the dataset's folder, size and checksum (either sum may be unknown)."""

    name: str
    bytes: int | None = None
    sha256: str | None = None
    md5: str | None = None  # only where the owner publishes no better one

    def check(self, folder: Path, *, sums: bool = True) -> None:
        """Raises `DataError` where the file is missing, or has another size or (with `sums`) checksum."""
        path = folder / self.name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"Missing data file {path} ({error.strerror}).") from error
        if self.bytes is not None and size != self.bytes:
            raise DataError(f"{path} has {size:,} bytes, expected {self.bytes:,}: truncated or replaced.")
        for algorithm, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if sums and expected is not None:
                found = digest(path, algorithm)
                if found != expected:
                    raise DataError(f"{path} was altered: its {algorithm} is {found}, expected {expected}.")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a folder of data. `examples` gives the number for every split that the folder holds."""

    dataset: str
    examples: dict[str, int]
    files: tuple[FileRecord, ...]
    synthetic: bool = False  # written by `algoperf data synth`, or prepared from such data
    generation: Generation | None = None  # how synthetic data were made
    preparation: int = 1  # version of the code that wrote the folder
    facts: dict[str, Any] = field(default_factory=dict)  # what else the dataset's reader needs to know

    def check(self, folder: Path, *, sums: bool = True) -> None:
        """Raises `DataError` for the first file that is missing or differs."""
        for record in self.files:
            record.check(folder, sums=sums)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file. Raises `DataError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def sum_file(path: Path) -> Path:
    """Where the checksum of a file is noted whose owner publishes none."""
    return path.with_name(f"{path.name}.sha256")


def noted_sum(path: Path) -> str | None:
    """The SHA-256 that was noted when a file was downloaded. Raises `DataError` for a note that is none."""
    note = sum_file(path)
    try:
        text = note.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {note}: {error}.") from error
    match = re.fullmatch(r"([0-9a-f]{64})  (.+)\n", text)
    if match is None or match[2] != path.name:
        raise DataError(f"{note} holds no checksum of {path.name}. Delete it, and the file, to download it again.")
    return match[1]


def record_files(folder: Path, names: Iterable[str]) -> tuple[FileRecord, ...]:
    """Sizes and checksums of files as they are now, sorted by name."""
    return tuple(
        FileRecord(name=name, bytes=(folder / name).stat().st_size, sha256=digest(folder / name))
        for name in sorted(names)
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` in one step; the files it names must be complete."""
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or `None` where it has none. Raises `DataError` for one that is malformed."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(FileRecord(**record) for record in raw.pop("files"))
        made = raw.pop("generation", None)
        manifest = Manifest(**raw, files=files, generation=None if made is None else Generation(**made))
        examples: Mapping[Any, Any] = manifest.examples
        if not all(isinstance(number, int) and number >= 0 for number in examples.values()):
            raise TypeError("numbers of examples")  # noqa: TRY301 - reported like every other malformation
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not a manifest of this package ({error}). Write the folder anew.") from error
    return manifest


def with_manifest(spec: WorkloadSpec, manifest: Manifest) -> WorkloadSpec:
    """The facts of a workload with the numbers of examples that a folder holds.

    The sample of the training split shrinks with it. Raises `DataError` for another dataset's folder or an empty split.
    """
    if manifest.dataset != spec.dataset:
        raise DataError(f"The folder holds {manifest.dataset!r}, workload {spec.name} needs {spec.dataset!r}.")
    counts = {split: manifest.examples.get(split, 0) for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)}
    for split, count in counts.items():
        if count == 0 and spec.num_examples(split) > 0:
            raise DataError(f"The {split} split of {spec.dataset} is empty in this folder; it needs examples.")
    return replace(
        spec,
        num_train=counts[Split.TRAIN],
        num_eval_train=min(spec.num_eval_train, counts[Split.TRAIN]),
        num_validation=counts[Split.VALIDATION],
        num_test=counts[Split.TEST],
    )


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write in that appears under its name only if the block ends well; nothing is left behind otherwise.

    Raises `UsageError` where `folder` exists and is not empty, unless `overwrite`, and where it cannot be written.
    """
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already. Choose another --out, or add --overwrite.")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.is_dir():
            shutil.rmtree(folder)
        partial.replace(folder)
    except OSError as error:
        raise UsageError(f"Cannot write {folder}: {error.strerror or error}. Choose another --out.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
