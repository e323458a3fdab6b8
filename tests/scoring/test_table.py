import json

import numpy as np
import pytest

from algoperf_torch.errors import LogError
from algoperf_torch.scoring import table as module
from algoperf_torch.scoring.table import as_old_pandas, parse_object, parse_table, read_bytes


def test_numbers_are_rounded_correctly():
    table = parse_table(b"score,x\n3903.2449610233307,1e-320\n-0.5,3000\n")
    assert table.columns == ("score", "x")
    assert table["score"].tolist() == [3903.2449610233307, -0.5]
    assert table["x"].tolist() == [1e-320, 3000.0]


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NA", "null", "None", " "])
def test_missing_values_are_nan(cell):
    assert np.isnan(parse_table(f"a,b\n1,{cell}\n".encode())["b"][0])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b\r\n1,2\r\n", [[1, 2]]),
        ("a,b\n1,2", [[1, 2]]),
        ('"a","b"\n"1",2\n', [[1, 2]]),
        ("\ufeffa,b\n1,2\n", [[1, 2]]),
        ("a,b\n\n1,2\n\n", [[1, 2]]),
        ("a,b\n1,inf\n", [[1, np.inf]]),
        ("a,b\n", np.empty((0, 2))),
        ("a,b", np.empty((0, 2))),
        ("a\n1\n2\n", [[1], [2]]),
    ],
    ids=repr,
)
def test_other_spellings(text, values):
    np.testing.assert_array_equal(parse_table(text.encode()).values, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a,b\n1\n", "row 2 has 1 cells where the header has 2"),
        (b"a,b\n1,2\n1,2,3\n", "row 3 has 3 cells"),
        (b"a,b\n1,2\n1\n2,3,4\n", "row 3 has 1 cells"),  # as many cells as there should be, in all
        (b"a,a\n1,2\n", "names the column 'a' twice"),
        (b"a,b\n1,<b>x</b>\n", "row 2, column 'b': '<b>x</b>' is not a number"),
        (b"a,b\n1,1_000\n", "'1_000' is not a number"),
        (b"a,b\n1,0x10\n", "'0x10' is not a number"),
        (b"a,b\n1,1.2.3\n", "'1.2.3' is not a number"),
        (b"a,b\n1,\xff\n", "is not ASCII"),
        (b"a,b\n1,2\x00\n", "is not a number"),
        (b'a,b\n1,"2\n', "is not a CSV file"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not a table of numbers"),
    ],
    ids=repr,
)
def test_damage_is_named(text, message):
    with pytest.raises(LogError, match=message.replace(".", r"\.")):
        parse_table(text)


def test_only_wanted_columns_are_kept():
    table = parse_table(b"a,b,c\n1,2,3\n4,5,6\n", lambda name: name in "ac")
    assert table.columns == ("a", "c")
    np.testing.assert_array_equal(table.values, [[1, 3], [4, 6]])
    assert np.isnan(table.get("b")).all()


def test_damage_in_an_unwanted_column_is_found():
    with pytest.raises(LogError, match="'oops' is not a number"):
        parse_table(b"a,b\n1,oops\n", lambda name: name == "a")


def test_empty_table_keeps_its_columns():
    assert parse_table(b"a,b,c\n", lambda name: name != "b").values.shape == (0, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
    ],
    ids=["brace", "list", "null", "bytes", "deep", "long"],
)
def test_bad_json(data, message):
    with pytest.raises(LogError, match=message):
        parse_object(data)


def test_json_object():
    assert parse_object(json.dumps({"a": 1}).encode()) == {"a": 1}


def test_reads_regular_files_only(tmp_path, monkeypatch):
    import os

    with pytest.raises(LogError, match="No such file"):
        read_bytes(tmp_path / "absent")
    with pytest.raises(LogError, match="directory"):
        read_bytes(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LogError, match="not a regular file"):
        read_bytes(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 100)
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(LogError, match="has 100 bytes; a log has at most 10"):
        read_bytes(tmp_path / "large")


@pytest.mark.parametrize(
    ("written", "once", "twice"),
    [  # from the published self-tuning logs of v0.5: what files hold, and what the published tables made of it
        (3903.2449610233307, 3903.2449610233302, 3903.24496102333),
        (1978.7172708511353, 1978.7172708511357, 1978.717270851136),
        (124027.13020038605, 124027.13020038603, 124027.13020038603),
        (0.3308080808080808, 0.3308080808080808, 0.3308080808080808),
        (0.09027777777777775, 0.0902777777777777, 0.0902777777777777),
        (5.0, 5.0, 5.0),
        (float("inf"), float("inf"), float("inf")),
        (1e-300, 1e-300, 1e-300),
    ],
)
def test_reader_of_old_pandas(written, once, twice):
    assert as_old_pandas(written) == once
    assert as_old_pandas(as_old_pandas(written)) == twice
