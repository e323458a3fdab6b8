"""`algoperf data verify`: are all files of a dataset there, of the right size, and unaltered?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from algoperf_torch.data.datasets import dataset, expected_files
from algoperf_torch.errors import DataError


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Compares files with their manifest, or with what the dataset's owner publishes where they have none."""

    dataset: tyro.conf.Positional[str]
    """Name of the dataset, such as mnist."""
    data_dir: Path
    """Directory of all data, which holds the folder <dataset>."""
    sums: bool = True
    """Compare checksums too, which reads every byte; otherwise sizes only."""


def main(options: VerifyOptions) -> int:
    """Prints one line for each file that is wrong. Returns 0 if none is; raises `DataError` at the end otherwise."""
    dataset(options.dataset)
    console = Console(highlight=False, soft_wrap=True)
    folder, manifest, records = expected_files(options.data_dir, options.dataset)
    wrong = 0
    for record in records:
        try:
            record.check(folder, sums=options.sums)
        except DataError as error:
            wrong += 1
            console.print(f"wrong  {error}")
    if wrong:
        raise DataError(f"{wrong} of {len(records)} files in {folder} are missing or differ.")
    origin = "as published" if manifest is None else "as its manifest says"
    synthetic = ", synthetic" if manifest is not None and manifest.synthetic else ""
    compared = "sizes and checksums" if options.sums else "sizes"
    console.print(f"{folder}: {len(records)} files, {compared} {origin}{synthetic}.")
    return 0
