"""Downloads from a server on this machine that cuts connections, lies about ranges, fails, or crawls."""

import hashlib
import http.server
import threading
import time
from pathlib import Path

import pytest

from algoperf_torch.data import datasets, download
from algoperf_torch.data.datasets import PublishedFile
from algoperf_torch.data.download import DownloadOptions, fetch, main
from algoperf_torch.data.manifest import Manifest, noted_sum, write_manifest
from algoperf_torch.errors import DataError, UnknownNameError, UsageError

CONTENT = bytes(range(256)) * 4_000  # about 1 MB
RECORD = PublishedFile(name="file.bin", bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


class Server(http.server.ThreadingHTTPServer):
    """Serves `/<behaviour>/...`; notes (behaviour, first byte asked for) of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.cut_after = [100_000, 300_000, 5]  # bytes sent by the first answers of `cut`; later ones are complete

    def url(self, behaviour):
        return f"http://127.0.0.1:{self.server_address[1]}/{behaviour}/file.bin"

    def count(self, behaviour):
        return sum(name == behaviour for name, _ in self.requests)

    def handle_error(self, request, client_address):
        """A client that hangs up is part of these tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        behaviour = self.path.split("/")[1]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.server.requests.append((behaviour, start))
        getattr(self, behaviour)(start)

    def answer(self, body, start=0, status=None, announced=None, total=RECORD.bytes):
        self.send_response(status or (206 if start else 200))
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body)

    def good(self, start):
        self.answer(CONTENT[start:], start)

    def cut(self, start):
        part = CONTENT[start:][: self.server.cut_after.pop(0)] if self.server.cut_after else CONTENT[start:]
        self.answer(part, start, announced=len(CONTENT) - start)

    def always_cut_at_half(self, start):
        self.answer(CONTENT[start : len(CONTENT) // 2], start, announced=len(CONTENT) - start)

    def without_ranges(self, start):
        self.answer(CONTENT)

    def without_length(self, start):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def wrong_range(self, start):
        """Says it begins elsewhere than asked."""
        if start:
            self.answer(CONTENT[start // 2 :], start // 2)
        else:
            self.good(0)

    def lying_range(self, start):
        """Says it begins where asked, but sends the file from its beginning."""
        self.answer(CONTENT[: len(CONTENT) - start], start)

    def no_content_range(self, start):
        self.answer(CONTENT[start:], 0, status=206 if start else 200)

    def unsatisfiable(self, start):
        if start:
            self.send_error(416)
        else:
            self.good(0)

    def nothing_left(self, start):
        self.send_response(416)
        self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def other_file(self, start):
        self.answer(b"<html>Please log in</html>")

    def other_total(self, start):
        self.answer(CONTENT[start:] + b"more", start, total=len(CONTENT) + 4)

    def altered(self, start):
        self.answer((CONTENT[:-1] + b"?")[start:], start)

    def too_long(self, start):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT + b"more")

    def missing(self, start):
        self.send_error(404)

    def busy(self, start):
        self.send_error(503)

    def garbage(self, start):
        self.wfile.write(b"not http at all\r\n\r\n")

    def stalled(self, start):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:10])
        self.wfile.flush()
        time.sleep(3)

    def crawling(self, start):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for byte in range(100):
            self.wfile.write(CONTENT[byte : byte + 1])
            self.wfile.flush()
            time.sleep(0.03)

    def redirected(self, start):
        self.send_response(302)
        self.send_header("Location", self.server.url("good"))
        self.end_headers()


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def get(server, tmp_path):
    """Fetches from servers of the given behaviours, in this order; pauses are noted, not slept."""

    def run(*behaviours, retries=2, timeout=5.0):
        run.pauses = []
        urls = [server.url(behaviour) for behaviour in behaviours]
        return fetch(RECORD, urls, tmp_path, retries=retries, timeout=timeout, sleep=run.pauses.append)

    return run


@pytest.mark.parametrize("behaviour", ["good", "without_ranges", "without_length", "redirected"])
def test_whole_file(get, behaviour, tmp_path):
    assert get(behaviour).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_complete_file_is_not_fetched_again(get, server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    get("good")
    assert server.requests == []


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"?", CONTENT[:100]], ids=["altered", "truncated"])
def test_bad_file_is_replaced(get, tmp_path, content):
    (tmp_path / "file.bin").write_bytes(content)
    assert get("good").read_bytes() == CONTENT


def test_cut_connections_are_taken_up_where_they_broke(get, server):
    assert get("cut", retries=0).read_bytes() == CONTENT
    assert server.requests == [("cut", 0), ("cut", 100_000), ("cut", 400_000), ("cut", 400_005)]


def test_goes_on_from_an_earlier_run(get, server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:77_777])
    assert get("good").read_bytes() == CONTENT
    assert server.requests == [("good", 77_777)]


def test_part_that_is_complete_needs_no_request(get, server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get("good").read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 9)], ids=len)
def test_bad_part_is_thrown_away(get, tmp_path, part):
    (tmp_path / "file.bin.part").write_bytes(part)
    assert get("good").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "behaviour", ["without_ranges", "without_length", "wrong_range", "lying_range", "no_content_range", "unsatisfiable"]
)
def test_server_that_misreads_ranges(get, behaviour, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:300_000])
    assert get(behaviour).read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["other_file", "altered", "too_long", "missing"])
def test_mirror_without_the_file_is_asked_once(get, server, behaviour, tmp_path):
    assert get(behaviour, "good").read_bytes() == CONTENT
    (tmp_path / "file.bin").unlink()
    with pytest.raises(DataError, match=r"Could not download file\.bin"):
        get(behaviour)
    assert server.count(behaviour) == 2  # once in each call
    assert list(tmp_path.iterdir()) == []


def test_mirror_with_a_longer_file(get, server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert get("other_total", "good").read_bytes() == CONTENT
    assert server.requests == [("other_total", 1000), ("good", 1000)]


@pytest.mark.parametrize("behaviour", ["busy", "garbage"])
def test_failing_mirror_is_asked_again(get, server, behaviour):
    with pytest.raises(DataError, match=behaviour):
        get(behaviour, retries=3)
    assert server.count(behaviour) == 4
    assert get.pauses == [1.0, 2.0, 4.0]


def test_failing_mirror_gives_way_to_the_next(get, server):
    assert get("busy", "cut").read_bytes() == CONTENT
    assert server.requests[:2] == [("busy", 0), ("cut", 0)]


def test_unreachable_mirror(get, server, tmp_path):
    server.url = lambda behaviour: (
        "http://127.0.0.1:9/file.bin" if behaviour == "nobody" else Server.url(server, behaviour)
    )
    assert get("nobody", "good").read_bytes() == CONTENT


def test_no_progress_ends_the_download_and_keeps_what_arrived(get, server, tmp_path):
    with pytest.raises(DataError, match=r"connection closed after 512,000 of 1,024,000 bytes.*kept"):
        get("always_cut_at_half", retries=2)
    assert server.count("always_cut_at_half") == 4  # one with progress, three without
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[: len(CONTENT) // 2]
    assert not (tmp_path / "file.bin").exists()
    assert get("good").read_bytes() == CONTENT


def test_mirrors_that_undo_each_other_end(get, server):
    """One stops at the half, the other starts from the beginning and stops earlier: no new byte, so it ends."""
    server.cut_after = [1000] * 50
    with pytest.raises(DataError):
        get("always_cut_at_half", "unsatisfiable_cut", retries=3)


def _unsatisfiable_cut(self, start):
    if start:
        self.send_error(416)
    else:
        self.cut(0)


Handler.unsatisfiable_cut = _unsatisfiable_cut


@pytest.mark.parametrize("behaviour", ["stalled", "crawling"])
def test_slow_mirror_is_given_up(get, server, behaviour):
    started = time.monotonic()
    assert get(behaviour, "good", timeout=0.3).read_bytes() == CONTENT
    assert server.requests[0] == (behaviour, 0)
    assert server.requests[1][0] == "good"
    assert server.requests[1][1] > 0  # what came slowly was kept
    assert time.monotonic() - started < 2.5


def test_crawling_alone_ends(get):
    with pytest.raises(DataError, match="bytes per second"):
        get("crawling", retries=1, timeout=0.2)


def test_progress_is_told(server, tmp_path):
    told = []
    fetch(RECORD, [server.url("cut")], tmp_path, on_progress=told.append, sleep=lambda _: None)
    assert told == sorted(told)
    assert told[-1] == len(CONTENT)


def test_one_download_at_a_time(get, tmp_path):
    import fcntl

    with (tmp_path / "file.bin.part").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is in use"):
            get("good")


def test_no_room(get, monkeypatch, tmp_path):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UsageError, match=r"No room for .*1,024,000 bytes are missing"):
        get("good")
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up():
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(UsageError, match="No space left"):
        download._write(full, b"x")


def test_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match=r"Cannot write .*Choose another --out"):
        fetch(RECORD, [server.url("good")], tmp_path / "taken")


@pytest.mark.parametrize("url", ["ftp://host/file", "file:///etc/passwd", "host/file"])
def test_address_of_another_kind(tmp_path, url):
    with pytest.raises(UsageError, match="no http or https address"):
        fetch(RECORD, [url], tmp_path)


def test_no_address(tmp_path):
    with pytest.raises(DataError, match="no address is known"):
        fetch(RECORD, [], tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def listed(server, monkeypatch, tmp_path):
    """A list of datasets whose files lie on the server."""
    path = tmp_path / "datasets.toml"
    path.write_text(f'''
        [little]
        title = "Little"
        homepage = "http://little"
        code = "little"
        mirrors = ["{server.url("missing").removesuffix("/file.bin")}", "{server.url("cut").removesuffix("/file.bin")}/"]
        [[little.files]]
        name = "file.bin"
        bytes = {RECORD.bytes}
        sha256 = "{RECORD.sha256}"
        [gated]
        title = "Gated"
        homepage = "http://gated"
        code = "gated"
        access = "Register at http://gated and put the archive into DIR."
    ''')
    known = datasets.load_datasets(path)
    monkeypatch.setattr(datasets, "_built_in", lambda: known)
    return tmp_path / "out"


def test_command(listed, server, capsys):
    assert main(DownloadOptions(dataset="little", out=listed)) == 0
    assert (listed / "little" / "file.bin").read_bytes() == CONTENT
    assert server.requests[0] == ("missing", 0)
    assert "1 files, 1.0 MB, sizes and checksums right" in capsys.readouterr().out


def test_command_takes_other_mirrors(listed, server):
    mirror = server.url("good").removesuffix("/file.bin")
    assert main(DownloadOptions(dataset="little", out=listed, mirrors=(mirror,))) == 0
    assert server.requests == [("good", 0)]


def test_command_tells_how_to_get_gated_data(listed):
    with pytest.raises(UsageError, match=r"Gated cannot be downloaded from here. Register at"):
        main(DownloadOptions(dataset="gated", out=listed))


def test_command_refuses_an_unknown_dataset(listed):
    with pytest.raises(UnknownNameError, match=r"'litle'. Must be one of: gated, little"):
        main(DownloadOptions(dataset="litle", out=listed))


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout": 0.0}, {"timeout": float("nan")}], ids=str)
def test_command_refuses_bad_options(listed, options):
    with pytest.raises(UsageError, match="--retries must be"):
        main(DownloadOptions(dataset="little", out=listed, **options))


def test_command_refuses_a_folder_of_synthetic_data(listed):
    folder = listed / "little"
    folder.mkdir(parents=True)
    write_manifest(folder, Manifest(dataset="little", examples={}, files=(), synthetic=True))
    with pytest.raises(UsageError, match="Choose another --out"):
        main(DownloadOptions(dataset="little", out=listed))


UNKNOWN = PublishedFile(name="file.bin")  # its owner publishes neither size nor checksum


@pytest.fixture
def get_unknown(server, tmp_path):
    def run(*behaviours, retries=2):
        urls = [server.url(behaviour) for behaviour in behaviours]
        return fetch(UNKNOWN, urls, tmp_path, retries=retries, timeout=5.0, sleep=lambda _: None)

    return run


@pytest.mark.parametrize("behaviour", ["good", "cut", "redirected", "wrong_range", "no_content_range"])
def test_unknown_file_gets_the_size_of_the_server_and_a_noted_sum(get_unknown, server, tmp_path, behaviour):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    assert get_unknown(behaviour, retries=5).read_bytes() == CONTENT
    assert noted_sum(tmp_path / "file.bin") == RECORD.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.bin", "file.bin.sha256"]
    asked = len(server.requests)
    get_unknown(behaviour)
    assert len(server.requests) == asked


def test_unknown_file_that_is_complete_already(get_unknown, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get_unknown("nothing_left").read_bytes() == CONTENT
    assert noted_sum(tmp_path / "file.bin") == RECORD.sha256


def test_unknown_file_that_was_altered_is_fetched_again(get_unknown, tmp_path):
    path = get_unknown("good")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert get_unknown("good").read_bytes() == CONTENT


def test_a_file_of_unknown_size_needs_a_server_that_knows_it(get_unknown, tmp_path):
    with pytest.raises(DataError, match="does not say how large the file is"):
        get_unknown("without_length")
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize("note", [b"", b"abc  file.bin\n", b"\xff", f"{RECORD.sha256}  other.bin\n".encode()], ids=str)
def test_damaged_note(get_unknown, tmp_path, note):
    get_unknown("good")
    (tmp_path / "file.bin.sha256").write_bytes(note)
    with pytest.raises(DataError, match=r"file.bin.sha256"):
        get_unknown("good")


def test_verify_holds_a_file_to_its_noted_sum(server, monkeypatch, tmp_path):
    known = datasets.Dataset(
        name="little", title="", homepage="", code="little", files=(UNKNOWN,), unpacking="unzip it"
    )
    monkeypatch.setattr(datasets, "_built_in", lambda: {"little": known})
    mirror = server.url("good").removesuffix("/file.bin")
    assert main(DownloadOptions(dataset="little", out=tmp_path, mirrors=(mirror,))) == 0
    assert datasets.check_folder(tmp_path, "little") is None
    path = tmp_path / "little" / "file.bin"
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DataError, match=r"file.bin was altered"):
        datasets.check_folder(tmp_path, "little")


def test_command_tells_what_comes_next(server, monkeypatch, tmp_path, capsys):
    known = datasets.Dataset(
        name="little", title="", homepage="", code="little", files=(UNKNOWN,), unpacking="unzip it"
    )
    monkeypatch.setattr(datasets, "_built_in", lambda: {"little": known})
    main(DownloadOptions(dataset="little", out=tmp_path, mirrors=(server.url("good").removesuffix("/file.bin"),)))
    said = capsys.readouterr().out
    assert "checksums of 1 noted for later" in said
    assert "little: unzip it" in said


def test_known_datasets_have_addresses_and_sums_only_with_sizes():
    for name in datasets.dataset_names():
        known = datasets.dataset(name)
        assert known.files or known.access
        for file in known.files:
            assert file.bytes if file.sha256 else file.bytes is None
            assert all(url.startswith("https://") for url in known.urls(file))
            assert known.urls(file)
            assert file.sha256 is None or len(file.sha256) == 64
