import sqlite3

import numpy as np
import pytest

from algoperf_torch.scoring import cache as module
from algoperf_torch.scoring.cache import cache_file, open_cache
from algoperf_torch.scoring.table import Table

TABLE = Table(("a", "b"), np.array([[1.0, np.nan], [3.0, 4.0]]))
KEY = b"k" * 16


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "tables.sqlite3"


def store(path):
    with open_cache(path) as cache:
        assert cache.get(KEY) is None
        cache.put(KEY, TABLE)


def test_round_trip(path):
    store(path)
    with open_cache(path) as cache:
        found = cache.get(KEY)
        assert found.columns == TABLE.columns
        np.testing.assert_array_equal(found.values, TABLE.values)
        assert cache.get(b"other") is None


def test_table_without_rows(path):
    with open_cache(path) as cache:
        cache.put(KEY, Table(("a", "b"), np.empty((0, 2))))
    with open_cache(path) as cache:
        assert cache.get(KEY).values.shape == (0, 2)


def test_damaged_file_is_replaced(path):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    store(path)
    with open_cache(path) as cache:
        assert cache.get(KEY) is not None


def test_damaged_entry_is_not_used(path):
    store(path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE tables SET content = zeroblob(32)")
    database.close()
    with open_cache(path) as cache:
        assert cache.get(KEY) is None


def test_locked_by_another_process(path, monkeypatch):
    store(path)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.01))
    with open_cache(path) as cache:
        assert cache.get(KEY) is None
        cache.put(KEY, TABLE)
    other.close()


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with open_cache(tmp_path / "file" / "tables.sqlite3") as cache:
        assert cache.get(KEY) is None
        cache.put(KEY, TABLE)


def test_grown_too_large(path, monkeypatch):
    store(path)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with open_cache(path) as cache:
        assert cache.get(KEY) is None


def test_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file().parent == tmp_path / "algoperf_torch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file().parent == tmp_path / ".cache" / "algoperf_torch"
