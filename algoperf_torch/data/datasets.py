"""The datasets by name: their owners' files as data (`datasets.toml`) and where the code of each lives."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from algoperf_torch.data.manifest import FileRecord, Manifest, noted_sum, read_manifest
from algoperf_torch.errors import DataError, UnknownNameError, UsageError

DATASET_FILE = Path(__file__).with_name("datasets.toml")


@dataclass(frozen=True, kw_only=True)
class PublishedFile(FileRecord):
    """A file that can be downloaded; `urls` are addresses beside those of the dataset's mirrors."""

    urls: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known of a dataset without opening it.

    Attributes:
        code: package in `algoperf_torch.workloads` with the modules `synth` and, where data are packed, `prepare`.
        mirrors: addresses in front of the files' names, tried in this order.
        files: what the owner publishes, if it can be downloaded.
        unpacked: the same content unpacked, accepted in place of `files`.
        unpacking: what is to be done with the downloaded files before they can be prepared.
        access: for data behind a registration: what a user must do.
    """

    name: str
    title: str
    homepage: str
    code: str
    mirrors: tuple[str, ...] = ()
    files: tuple[PublishedFile, ...] = ()
    unpacked: tuple[FileRecord, ...] = ()
    unpacking: str | None = None
    access: str | None = None

    def urls(self, file: PublishedFile, mirrors: Sequence[str] = ()) -> list[str]:
        """Addresses of one of the `files`, in the order in which to try them: on `mirrors` first."""
        first, last = ([mirror.rstrip("/") + "/" + file.name for mirror in some] for some in (mirrors, self.mirrors))
        return [*first, *file.urls, *last]

    def part(self, module: str) -> ModuleType:
        """The dataset's own module of that name (`synth`, `prepare`). Raises `UsageError` where it has none."""
        name = f"algoperf_torch.workloads.{self.code}.{module}"
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise UsageError(f"Dataset {self.name} has no `algoperf data {module}`.") from None


def load_datasets(path: Path = DATASET_FILE) -> dict[str, Dataset]:
    """All datasets of a TOML file. Raises `UsageError` for one that cannot be read."""
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return {
            name: Dataset(
                name=name,
                **{
                    **facts,
                    "mirrors": tuple(facts.get("mirrors", ())),
                    "files": tuple(
                        PublishedFile(**{**record, "urls": tuple(record.get("urls", ()))})
                        for record in facts.get("files", ())
                    ),
                    "unpacked": tuple(FileRecord(**record) for record in facts.get("unpacked", ())),
                },
            )
            for name, facts in raw.items()
        }
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UsageError(f"Cannot read {path} as a list of datasets: {error}.") from error


@cache
def _built_in() -> dict[str, Dataset]:
    return load_datasets()


def dataset_names() -> list[str]:
    return sorted(_built_in())


def dataset(name: str) -> Dataset:
    """Raises `UnknownNameError`."""
    if name not in _built_in():
        raise UnknownNameError("dataset", name, _built_in())
    return _built_in()[name]


def dataset_folder(root: Path | None, name: str) -> Path:
    """`root`/<dataset>. Raises `DataError` where it is absent, saying how to get the data."""
    if root is None:
        raise DataError(
            f"Dataset {name} needs a folder of data: add --data-dir DIR, which holds {name}/. {_advice(name)}"
        )
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"No data of {name} in {root}: there is no folder {folder}. {_advice(name)}")
    return folder


def expected_files(root: Path | None, name: str) -> tuple[Path, Manifest | None, tuple[FileRecord, ...]]:
    """The folder `root`/<dataset>, its manifest if it has one, and the files that it should hold. Raises `DataError`."""
    folder = dataset_folder(root, name)
    manifest = read_manifest(folder)
    if manifest is not None:
        return folder, manifest, manifest.files
    published = dataset(name)
    unpacked = any((folder / record.name).exists() for record in published.unpacked)
    records: tuple[FileRecord, ...] = published.unpacked if unpacked else published.files
    records = tuple(
        record if record.sha256 or record.md5 else replace(record, sha256=noted_sum(folder / record.name))
        for record in records
    )
    if not records:
        raise DataError(f"{folder} has no manifest.json. Write it with `algoperf data prepare {name}`.")
    return folder, None, records


def check_folder(root: Path | None, name: str, *, sums: bool = True) -> Manifest | None:
    """Checks the files of `root`/<dataset> and returns its manifest, `None` for files as their owner publishes them.

    Raises `DataError` for the first file that is missing or differs from the manifest or, without one, from the owner's.
    """
    folder, manifest, records = expected_files(root, name)
    for record in records:
        record.check(folder, sums=sums)
    return manifest


def _advice(name: str) -> str:
    return (
        f"Get it with `algoperf data download {name} --out DIR`, or make some: `algoperf data synth {name} --out DIR`."
    )
