"""`algoperf data prepare`: from a dataset's raw files to the packed folder that training reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from algoperf_torch.data.datasets import dataset
from algoperf_torch.errors import DataError, UnknownNameError, UsageError


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Prepares a dataset; can be killed and run again at any time, and then goes on where it was.

    The folder appears only when it is complete. Raw files are read, never changed.
    """

    dataset: tyro.conf.Positional[str]
    """Name of the dataset, such as ogbg."""
    raw: Path
    """Directory of raw data: <raw>/<dataset> where there is such a folder, else <raw> itself."""
    out: Path
    """Directory of all prepared data; the dataset gets the folder <out>/<dataset>."""
    workers: int | None = None
    """Processes that work side by side. Default: one for each processor, at most 16."""
    set: tuple[str, ...] = ()
    """Settings of the dataset, as name=value (wmt: vocab_size; finewebedu_lm: tokenizer; ...)."""
    overwrite: bool = False
    """Replace the folder if it exists."""


def main(options: PrepareOptions) -> int:
    """Writes <out>/<dataset>. Raises `UsageError`, and `DataError` for bad raw files."""
    module = dataset(options.dataset).part("prepare")
    settings = parse_settings(options.set, getattr(module, "SETTINGS", {}))
    raw = options.raw / options.dataset
    raw = raw if raw.is_dir() else options.raw
    if not raw.is_dir():
        raise DataError(f"There is no folder of raw data {raw}.")
    if options.workers is not None and options.workers < 1:
        raise UsageError("--workers must be at least 1.")
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"preparing {options.dataset}", total=None)
        manifest = module.prepare(
            raw,
            options.out / options.dataset,
            workers=options.workers or min(16, os.cpu_count() or 1),
            overwrite=options.overwrite,
            progress=lambda done, total, _name: bar.update(task, completed=done, total=total),
            **settings,
        )
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.examples.items())
    size = sum(file.bytes or 0 for file in manifest.files)
    console.print(f"{options.out / options.dataset}: {counts} examples, {size / 1e6:,.1f} MB.")
    return 0


def parse_settings(given: tuple[str, ...], known: dict[str, Any]) -> dict[str, Any]:
    """`name=value` strings to values; `known` gives the type of each. Raises `UsageError`."""
    settings = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item}: write name=value.")
        if name not in known:
            raise UnknownNameError("setting", name, known)
        try:
            settings[name] = known[name](value)
        except ValueError as error:
            raise UsageError(f"--set {item}: {error}.") from error
    return settings
