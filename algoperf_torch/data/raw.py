"""Reading raw text files, plain or gzip, in blocks of whole lines."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from algoperf_torch.errors import DataError

BLOCK_BYTES = 4 << 20
GZIP_MAGIC = b"\x1f\x8b"


def open_raw(path: Path) -> IO[bytes]:
    """A binary file, unpacked on the fly where it begins like a gzip file. Raises `DataError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP_MAGIC
        return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Successive parts of a text file, each ending with a newline (added to the last line where it is missing).

    Raises `DataError` for a file that is missing, truncated or damaged.
    """
    rest = b""
    position = 0
    with open_raw(path) as file:
        while True:
            try:
                block = file.read(block_bytes)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path} is truncated or damaged after {position:,} bytes of text: {error}.") from error
            position += len(block)
            if not block:
                break
            end = block.rfind(b"\n") + 1
            if end:
                yield rest + block[:end]
                rest = block[end:]
            else:
                rest += block
    if rest:
        yield rest + b"\n"


def find_raw(folder: Path, *names: str) -> Path:
    """The first of the files that exists, looked for below `folder`. Raises `DataError` if none does."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"Missing raw file {' or '.join(names)} in {folder}.")
