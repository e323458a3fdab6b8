"""Parsed log files, kept between runs of the scorer: keyed by the content, so that a changed file is parsed again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from algoperf_torch.scoring.table import Table

MAX_BYTES = 512 * 2**20
_FORMAT = 1  # part of the file name: raise it when the parser changes


def cache_file() -> Path:
    """Where the cache lies: $XDG_CACHE_HOME or ~/.cache, folder algoperf_torch."""
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return Path(folder) / "algoperf_torch" / f"tables-{_FORMAT}.sqlite3"


class TableCache:
    """Tables by the digest of the file that they were parsed from; open one with `open_cache`.

    It only saves time: where it cannot be read or written, or an entry is damaged, files are parsed as without it.
    """

    def __init__(self, database: sqlite3.Connection | None) -> None:
        self._database = database
        self._new: list[tuple[bytes, str, bytes, bytes]] = []

    def get(self, key: bytes) -> Table | None:
        row: Any = None
        if self._database is not None:
            try:
                row = self._database.execute(
                    "SELECT columns, content, digest FROM tables WHERE key = ?", [key]
                ).fetchone()
            except sqlite3.Error:
                self._database = None
        if row is None or _digest(row[0], row[1]) != row[2]:
            return None
        columns = tuple(row[0].split(","))
        return Table(columns, np.frombuffer(row[1], dtype=np.float64).reshape(-1, len(columns)))

    def put(self, key: bytes, table: Table) -> None:
        columns, content = ",".join(table.columns), table.values.tobytes()
        self._new.append((key, columns, content, _digest(columns, content)))

    def flush(self) -> None:
        if self._database is None or not self._new:
            return
        with contextlib.suppress(sqlite3.Error), self._database:
            self._database.executemany("INSERT OR REPLACE INTO tables VALUES (?, ?, ?, ?)", self._new)
        self._new.clear()


@contextlib.contextmanager
def open_cache(path: Path | None = None) -> Iterator[TableCache]:
    """The cache, written when the block ends; emptied first where it has grown too large or is damaged."""
    path = path or cache_file()
    database = None
    with contextlib.suppress(OSError, sqlite3.Error):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_BYTES:
            path.unlink()
        database = _connect(path)
    cache = TableCache(database)
    try:
        yield cache
        cache.flush()
    finally:
        if database is not None:
            database.close()


def _connect(path: Path) -> sqlite3.Connection:
    for attempt in range(2):
        database = sqlite3.connect(path, timeout=1.0)
        try:
            database.execute("PRAGMA synchronous = OFF")  # entries carry a digest; a lost one is parsed again
            database.execute(
                "CREATE TABLE IF NOT EXISTS tables (key BLOB PRIMARY KEY, columns TEXT, content BLOB, digest BLOB)"
            )
            return database
        except sqlite3.DatabaseError as error:
            database.close()
            if attempt or isinstance(error, sqlite3.OperationalError):  # locked, or not to be written: not damaged
                raise
            path.unlink()
    raise AssertionError


def _digest(columns: str, content: bytes) -> bytes:
    return hashlib.blake2b(content, key=hashlib.blake2b(columns.encode()).digest(), digest_size=8).digest()
