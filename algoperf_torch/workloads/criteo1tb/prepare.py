"""Day files of the Criteo 1TB click logs to packed arrays: labels uint8 [n], inputs float32 [n, 39].

Raw: `day_0` ... `day_23`, plain or gzip (`day_0.gz`). Days 0 to 22 are the training split. Day 23 is cut into pieces of
5,000,000 lines: the first 19 are the test split, the rest is the validation split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, pack, source_files
from algoperf_torch.data.raw import find_raw, read_blocks
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.criteo1tb.records import parse_block

PREPARATION = 1
NUM_DAYS = 24
PIECE_LINES = 5_000_000  # training shuffles pieces of so many consecutive lines
NUM_TEST_PIECES = 19


class Lines(NamedTuple):
    """Lines `start` to `stop` (to the end where it is None) of a day file."""

    path: Path
    start: int
    stop: int | None


def prepare(
    raw: Path, out: Path, *, workers: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Packs the folder of day files `raw` as `out`. Raises `DataError` and `UsageError`."""
    paths = [find_raw(raw, f"day_{day}.gz", f"day_{day}") for day in range(NUM_DAYS)]
    described = read_manifest(raw)
    synthetic = described is not None and described.synthetic
    piece_lines = described.examples[Split.TEST] // NUM_TEST_PIECES if described and synthetic else PIECE_LINES
    num_test = NUM_TEST_PIECES * piece_lines
    jobs = [Job(Split.TRAIN, f"day_{day}", Lines(path, 0, None)) for day, path in enumerate(paths[:-1])]
    jobs.append(Job(Split.TEST, f"day_{NUM_DAYS - 1}", Lines(paths[-1], 0, num_test)))
    jobs.append(Job(Split.VALIDATION, f"day_{NUM_DAYS - 1}", Lines(paths[-1], num_test, None)))

    def fill(packing: Packing) -> dict[str, int]:
        packing.run(jobs, write_day)
        return {"piece_lines": piece_lines}

    return pack(
        out,
        fill,
        dataset="criteo1tb",
        preparation=PREPARATION,
        settings={"raw": source_files(paths, raw), "piece_lines": piece_lines},
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def write_day(part: PartWriter, lines: Lines) -> None:
    found = lines.start
    for text in selected(lines):
        labels, inputs = parse_block(text, str(lines.path), found + 1)
        part.append("labels", labels)
        part.append("inputs", inputs)
        found += len(labels)
    if lines.stop is not None and found < lines.stop:
        raise DataError(f"{lines.path} ends after {found:,} lines; the test split alone has {lines.stop:,}.")


def selected(lines: Lines) -> Iterator[bytes]:
    """Blocks of the selected lines, in order."""
    position = 0  # number of the block's first line
    for block in read_blocks(lines.path):
        count = block.count(b"\n")
        skip = max(lines.start - position, 0)
        keep = count if lines.stop is None else min(lines.stop - position, count)
        position += count
        if skip < keep:
            begin = nth_newline(block, skip)
            yield block[begin : len(block) if keep == count else nth_newline(block, keep)]
        if lines.stop is not None and position >= lines.stop:
            return


def nth_newline(block: bytes, number: int) -> int:
    """Where the line after the first `number` lines begins."""
    position = 0
    for _ in range(number):
        position = block.index(b"\n", position) + 1
    return position
