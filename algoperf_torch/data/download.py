"""`algoperf data download`: fetches what a dataset's owner publishes; goes on where it was cut off; checks every byte.

A file grows as `<name>.part` beside its final name and gets that name once size and checksum are right. Mirrors are tried
in turn. One that sends something else than the published file is not asked again; one that fails or stalls is.

Where the owner publishes neither size nor checksum, the size is the server's, and the checksum of what arrived is noted in
`<name>.sha256` (as `sha256sum` writes it): later runs and `algoperf data verify` hold the file to it.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from algoperf_torch.data.datasets import PublishedFile, dataset
from algoperf_torch.data.manifest import MANIFEST, digest, noted_sum, sum_file
from algoperf_torch.errors import DataError, UsageError

CHUNK = 1 << 20  # bytes
MIN_SPEED = 1_000  # bytes per second over one timeout; a mirror below it counts as stalled
USELESS_STATUS = frozenset({400, 401, 403, 404, 405, 410, 451})  # asking again changes nothing

OnProgress = Callable[[int], None]  # gets the number of bytes of the file that are there


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """Downloads a dataset from its public addresses; can be killed and run again at any time."""

    dataset: tyro.conf.Positional[str]
    """Name of the dataset, such as mnist."""
    out: Path
    """Directory of all data; the dataset gets the folder <out>/<dataset>."""
    mirrors: tuple[str, ...] = ()
    """Addresses of folders to try before the known ones; the same checksums must hold."""
    retries: int = 5
    """How often in a row a download may fail without a new byte."""
    timeout: float = 30.0
    """Seconds without data after which a connection is given up."""


class _Interrupted(Exception):
    """A transfer that may be taken up again: what arrived is good."""


class _Stalled(_Interrupted):
    """A connection that is alive but all too slow."""


class _WrongFile(Exception):
    """The mirror does not have the published file."""


def main(options: DownloadOptions) -> int:
    """Downloads what is missing of one dataset. Raises `DataError` where no mirror has it, `UsageError` for bad options."""
    published = dataset(options.dataset)
    if not published.files:
        raise UsageError(f"{published.title} cannot be downloaded from here. {published.access or published.homepage}")
    if options.retries < 0 or not options.timeout > 0:
        raise UsageError("--retries must be at least 0 and --timeout above 0 seconds.")
    folder = options.out / options.dataset
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder} holds data written by this package. Choose another --out.")
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        for file in published.files:
            bar = bars.add_task(file.name, total=file.bytes)
            fetch(
                file,
                published.urls(file, options.mirrors),
                folder,
                retries=options.retries,
                timeout=options.timeout,
                on_progress=lambda done, bar=bar: bars.update(bar, completed=done),  # type: ignore[misc]
            )
    total = sum((folder / file.name).stat().st_size for file in published.files)
    noted = sum(file.sha256 is None for file in published.files)
    checked = f"checksums of {noted} noted for later" if noted else "sizes and checksums right"
    console.print(f"{folder}: {len(published.files)} files, {total / 1e6:,.1f} MB, {checked}.")
    if published.unpacking is not None:
        console.print(f"Next, in {folder}: {published.unpacking}")
    return 0


def fetch(
    file: PublishedFile,
    urls: Sequence[str],
    folder: Path,
    *,
    retries: int = 5,
    timeout: float = 30.0,
    on_progress: OnProgress = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The path of the complete, checked file in `folder`; downloads what is missing of it.

    Args:
        urls: addresses of the file, http or https, tried in turn.
        retries: failures in a row without a new byte that are forgiven, with growing pauses between them.

    Raises `DataError` where no address gives the file (what arrived is kept), `UsageError` where it cannot be written.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url} is no http or https address.")
    target = folder / file.name
    if target.exists() and _is_right(target, file):
        on_progress(target.stat().st_size)
        return target
    with _writable(target, file) as part:
        _fill(part, file, list(urls), retries, timeout, on_progress, sleep)
        os.fsync(part.fileno())
        if file.sha256 is None:
            sum_file(target).write_text(f"{digest(Path(part.name))}  {target.name}\n", encoding="utf-8")
        Path(part.name).replace(target)
    return target


def _is_right(path: Path, file: PublishedFile) -> bool:
    if file.bytes is not None and path.stat().st_size != file.bytes:
        return False
    expected = file.sha256 or noted_sum(path)
    if expected is None:  # a file of the user's own, of which nothing is known
        return file.bytes is None
    return digest(path) == expected


@contextmanager
def _writable(target: Path, file: PublishedFile) -> Iterator[BinaryIO]:
    """`<target>.part`, open for reading and writing, held by this process alone."""
    path = target.with_name(f"{target.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.open("r+b" if path.exists() else "w+b")
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}. Choose another --out.") from error
    with part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path} is in use: the same download is running already.") from error
        try:
            missing = (file.bytes or 0) - _size(part)
            if missing > shutil.disk_usage(path.parent).free:
                raise UsageError(f"No room for {path}: {missing:,} bytes are missing. Choose another --out.")
            yield part
        finally:
            if path.exists() and not _size(part):
                path.unlink()


def _fill(
    part: BinaryIO,
    file: PublishedFile,
    urls: list[str],
    retries: int,
    timeout: float,
    on_progress: OnProgress,
    sleep: Callable[[float], None],
) -> None:
    """Goes round the addresses until `part` is the published file."""
    reasons: dict[str, str] = {}
    failures, furthest = 0, _size(part)  # failures in a row that brought no new byte
    while urls and failures <= retries:
        url = urls[0]
        before = _size(part)
        try:
            _transfer(part, file, url, timeout, on_progress)
            _check_sum(part, file, started_at=before)
        except _WrongFile as error:
            reasons[urls.pop(0)] = str(error)
        except _Interrupted as error:
            reasons[url] = str(error)
            urls.append(urls.pop(0))
            advanced = _size(part) > furthest and not isinstance(error, _Stalled)
            failures, furthest = 0 if advanced else failures + 1, max(furthest, _size(part))
            if failures and failures <= retries:
                sleep(min(2.0 ** (failures - 1), 30.0))
        else:
            return
    tried = "; ".join(f"{url}: {reason}" for url, reason in reasons.items()) or "no address is known"
    raise DataError(f"Could not download {file.name} ({tried}). What arrived is kept; run the command again to go on.")


def _transfer(part: BinaryIO, file: PublishedFile, url: str, timeout: float, on_progress: OnProgress) -> None:
    """Appends to `part` from one address until it has the published size, or the server's where none is published."""
    size = file.bytes
    if size is not None and _size(part) > size:
        part.truncate(0)
    offset = _size(part)
    if offset == size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "algoperf_torch", "Accept-Encoding": "identity"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            offset, size = _start(response, offset, size, part)
            part.seek(offset)
            for chunk in _chunks(response, timeout):
                offset += len(chunk)
                if size is not None and offset > size:
                    part.truncate(0)
                    raise _WrongFile(f"sent more than the expected {size:,} bytes")
                _write(part, chunk)
                on_progress(offset)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # our offset makes no sense to the server: start again
            if file.bytes is None and error.headers.get("Content-Range", "").strip() == f"bytes */{offset}":
                return  # nothing is missing
            part.truncate(0)
        kind = _WrongFile if error.code in USELESS_STATUS else _Interrupted
        raise kind(f"HTTP status {error.code}") from error
    except ValueError as error:
        raise _WrongFile(f"no address: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _Interrupted(f"{reason}" or type(error).__name__) from error
    if size is None:
        part.truncate(0)
        raise _WrongFile("does not say how large the file is, and neither does its owner")
    if offset < size:
        raise _Interrupted(f"connection closed after {offset:,} of {size:,} bytes")


def _start(response: http.client.HTTPResponse, offset: int, size: int | None, part: BinaryIO) -> tuple[int, int | None]:
    """Where in the file the response's first byte belongs, and the size of the file.

    The former is `offset`, or 0 where the server ignores or misreads ranges.
    """
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match is None or int(match[1]) != offset:
            part.truncate(0)
            raise _Interrupted(f"answered the range from {offset} with {response.headers.get('Content-Range')!r}")
        total = int(match[3]) if match[3] != "*" else size
        if size is not None and total != size:
            raise _WrongFile(f"has a file of {total:,} bytes, expected {size:,}")
        return offset, total
    total = int(length) if length.isdigit() else size
    if size is not None and total != size:
        raise _WrongFile(f"has a file of {total:,} bytes, expected {size:,}")
    part.truncate(0)
    return 0, total


def _chunks(response: http.client.HTTPResponse, timeout: float) -> Iterator[bytes]:
    """What arrives, as it arrives. Raises `_Stalled`."""
    started, received = time.monotonic(), 0
    while chunk := response.read1(CHUNK):
        yield chunk
        received += len(chunk)
        elapsed = time.monotonic() - started
        if elapsed > timeout:
            if received < MIN_SPEED * elapsed:
                raise _Stalled(f"only {received / elapsed:,.0f} bytes per second")
            started, received = time.monotonic(), 0


def _check_sum(part: BinaryIO, file: PublishedFile, *, started_at: int) -> None:
    part.flush()
    if file.sha256 is None or digest(Path(part.name)) == file.sha256:
        return
    part.truncate(0)
    if started_at:  # what was there before may have been the bad half
        raise _Interrupted("the checksum of the completed file is wrong")
    raise _WrongFile("sent a file with another checksum")


def _write(part: BinaryIO, chunk: bytes) -> None:
    try:
        part.write(chunk)
        part.flush()
    except OSError as error:
        raise UsageError(f"Cannot write {part.name}: {error.strerror or error}.") from error


def _size(part: BinaryIO) -> int:
    return os.fstat(part.fileno()).st_size
