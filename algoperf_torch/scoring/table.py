"""Tables of numbers from CSV files, and JSON objects: read strictly, damage reported as `LogError` without the path."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.errors import LogError

Floats = NDArray[np.float64]

MAX_BYTES = 64 * 2**20  # of one log file; official files are below 100 kB
_BOM = b"\xef\xbb\xbf"
_PLAIN_NUMBERS = b"0123456789.+-eE,\n"
_NOT_A_NUMBER = frozenset({"", "nan", "na", "n/a", "null", "none"})


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Named columns of numbers; an empty cell is NaN."""

    columns: tuple[str, ...]
    values: Floats  # [rows, columns]

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> Floats:
        return self.values[:, self.columns.index(name)]

    def get(self, name: str) -> Floats:
        """The column, or NaN in every row where there is none."""
        return self[name] if name in self.columns else np.full(len(self), np.nan)


def read_bytes(path: str | Path) -> bytes:
    """A regular file's content. Raises `LogError` for anything else, and for a file too large to be a log."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for its writer
        with open(handle, "rb", closefd=True) as file:  # noqa: PTH123 - a descriptor
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise LogError("is not a regular file")
            if status.st_size > MAX_BYTES:
                raise LogError(f"has {status.st_size:,} bytes; a log has at most {MAX_BYTES:,}")
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LogError(f"cannot be read: {error.strerror or error}") from error


def parse_table(data: bytes, wanted: Callable[[str], bool] | None = None) -> Table:
    """The numbers of a CSV file with a header line.

    Args:
        wanted: columns to keep, by name; default: all. Converting numbers is what takes time.

    Raises `LogError` for an empty file, a row of another length than the header, a column that appears twice, and a cell
    that is no number, also in a column that is not kept.
    """
    try:
        text = data.removeprefix(_BOM).decode("ascii")
    except UnicodeDecodeError as error:
        raise LogError(f"is not a table of numbers: byte {error.start} is not ASCII") from error
    if not text.strip():
        raise LogError("is empty")
    header, _, body = text.replace("\r\n", "\n").rstrip("\n").partition("\n")
    columns = tuple(header.split(","))
    lines = body.split("\n") if body else []
    plain = not body.encode().translate(None, _PLAIN_NUMBERS)
    if not plain or '"' in header or {line.count(",") for line in lines} - {len(columns) - 1}:
        return _parse_slowly(text)
    _check_header(columns)
    kept = [index for index, name in enumerate(columns) if wanted is None or wanted(name)]
    cells = ",".join(lines).split(",")
    try:
        values = [list(map(float, cells[index :: len(columns)])) for index in kept] if lines else [[]] * len(kept)
    except ValueError:  # an empty cell, or damage
        return _parse_slowly(text)
    return Table(tuple(columns[index] for index in kept), np.array(values, dtype=np.float64).T)


def _parse_slowly(text: str) -> Table:
    """All columns of a file with quotes, words, empty cells or damage; says in which row the damage is."""
    try:
        rows = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text), strict=True), 1) if row]
    except csv.Error as error:
        raise LogError(f"is not a CSV file: {error}") from error
    columns = tuple(rows[0][1])
    _check_header(columns)
    values = np.empty((len(rows) - 1, len(columns)))
    for index, (line, row) in enumerate(rows[1:]):
        if len(row) != len(columns):
            raise LogError(f"row {line} has {len(row)} cells where the header has {len(columns)}")
        for column, cell in enumerate(row):
            values[index, column] = _number(cell, f"row {line}, column {columns[column]!r}")
    return Table(columns, values)


def _number(cell: str, where: str) -> float:
    cell = cell.strip()
    if cell.lower() in _NOT_A_NUMBER:
        return float("nan")
    try:
        return float(cell if "_" not in cell else "")
    except ValueError:
        raise LogError(f"{where}: {cell[:40]!r} is not a number") from None


def _check_header(columns: tuple[str, ...]) -> None:
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise LogError(f"names the column {twice!r} twice")


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `LogError` for anything else, also for nesting that would exhaust the stack."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LogError(f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise LogError(f"holds a JSON {type(value).__name__}, not an object")
    return value


def as_old_pandas(value: float) -> float:
    """The number that pandas before 3 read where a CSV file holds `value`: up to a few units in the last place off.

    Its reader added up the first 17 digits in floating point, leading zeros included, and divided by a power of ten, instead
    of rounding correctly. The published tables were made with it. Files hold the shortest text of a number, so the text
    follows from the number.
    """
    text = repr(float(value))
    if "e" in text or not math.isfinite(value):
        return value
    whole, _, decimals = text.partition(".")
    digits = (whole + decimals)[:17]
    number = 0.0
    for digit in digits:
        number = number * 10.0 + float(digit)
    return number / 10.0 ** (len(digits) - len(whole))
