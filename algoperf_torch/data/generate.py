"""`algoperf data generate`: all the data of a benchmark version that fixes generated ones, ready for training."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from algoperf_torch.data import synth
from algoperf_torch.data.datasets import dataset
from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.errors import DataError, UnknownNameError, UsageError
from algoperf_torch.spec import Generation
from algoperf_torch.versions import load_version

RAW = "generated_raw"  # folder of the raw files in the directory of all data


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Generates and prepares the data of a version; can be killed and run again, and then does what is missing."""

    out: Path
    """Directory of all data; every dataset gets the folder <out>/<dataset>."""
    version: str = "mini"
    """Benchmark version, by name or path."""
    datasets: tuple[str, ...] = ()
    """Which datasets; default: all of the version."""
    workers: int | None = None
    """Processes that work side by side. Default: one for each processor, at most 16."""
    keep_raw: bool = False
    """Keep the raw files, in <out>/generated_raw."""
    overwrite: bool = False
    """Replace folders that hold other data."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError("--workers must be at least 1.")


def main(options: GenerateOptions) -> int:
    """Raises `UsageError` where a version has no such data, or a folder holds other ones."""
    version = load_version(options.version)
    if not version.data:
        raise UsageError(f"Version {version.name} has no generated data. Write, for example, --version mini.")
    for name in options.datasets:
        if name not in version.data:
            raise UnknownNameError(f"dataset of version {version.name}", name, version.data)
    chosen = options.datasets or tuple(version.data)
    console = Console(highlight=False, soft_wrap=True)
    for number, name in enumerate(chosen, start=1):
        started = time.perf_counter()
        label = f"[{number}/{len(chosen)}] {name}"
        with console.status(f"{label}: {version.data[name]}"):
            manifest, made = generate(name, version.data[name], options)
        counts = ", ".join(f"{count:,} {split}" for split, count in manifest.examples.items())
        size = sum(file.bytes or 0 for file in manifest.files) / 1e6
        told = f"{time.perf_counter() - started:.0f} s" if made else "there already"
        console.print(f"{label}: {counts} examples, {size:,.1f} MB; {told}", markup=False)
    console.print(f"All data of version {version.name}: --data-dir {options.out}", markup=False)
    return 0


def generate(name: str, wanted: Generation, options: GenerateOptions) -> tuple[Manifest, bool]:
    """The manifest of <out>/<name>, and whether the folder was written just now."""
    if (own := synth.generator(name)) != wanted.generator:
        raise DataError(f"The generator of {name} in this package is number {own}; the version has {wanted.generator}.")
    prepare, target = dataset(name).part("prepare"), options.out / name
    existing = read_manifest(target) if target.is_dir() else None
    if existing is not None and (existing.generation, existing.preparation) == (wanted, prepare.PREPARATION):
        existing.check(target, sums=False)
        return existing, False
    if target.exists() and not options.overwrite:
        raise UsageError(f"{target} holds other data than {wanted}. Choose another --out, or add --overwrite.")
    raw = options.out / RAW / name
    found = read_manifest(raw) if raw.is_dir() else None
    if found is None or found.generation != wanted:
        synth.write(name, raw, wanted, overwrite=True)
    workers = options.workers or min(16, os.cpu_count() or 1)
    manifest: Manifest = prepare.prepare(raw, target, workers=workers, overwrite=options.overwrite)
    if not options.keep_raw:
        shutil.rmtree(raw)
        if not any(raw.parent.iterdir()):
            raw.parent.rmdir()
    return manifest, True
