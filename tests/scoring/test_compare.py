import json
import math

import pytest

from algoperf_torch import cli
from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.scoring.compare import CompareOptions, compare


@pytest.fixture
def runs(tmp_path, write_reached, own_record):
    for study in range(5):
        for name, seconds in (("fast", 10.0), ("slow", 20.0), ("alike", 10.05)):
            write_reached(
                tmp_path / "runs", name, study, "digits", 1, seconds + study / 3, record=own_record(seed=study)
            )
    write_reached(tmp_path / "runs", "once", 0, "digits", 1, 30.0, record=own_record())
    write_reached(tmp_path / "runs", "never", 0, "digits", 1, math.inf, record=own_record())
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ("fast", "slow", "fast is 1.94 times as fast as slow (p = "),
        ("slow", "fast", "fast is 1.94 times as fast as slow (p = "),
        ("fast", "alike", "No difference shown: fast was 1.00 times as fast"),
        ("fast", "once", "Too few studies to say: fast was"),
        ("never", "slow", "Too few studies to say: slow was"),
    ],
)
def test_verdict(runs, first, second, verdict, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["compare", first, second, "--runs", str(runs)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(verdict)
    assert "digits" in out


def test_directories_and_names(runs):
    by_name, _ = compare(CompareOptions(first="fast", second="slow", runs=(runs,)))
    by_path, _ = compare(CompareOptions(first=str(runs / "fast"), second=str(runs / "slow")))
    assert by_name.times == by_path.times


def test_equal_names_in_two_directories(runs, tmp_path, write_reached, own_record):
    write_reached(tmp_path / "older", "fast", 0, "digits", 1, 40.0, record=own_record())
    result, comparison = compare(CompareOptions(first=str(runs / "fast"), second=str(tmp_path / "older" / "fast")))
    assert len(result.submissions) == 2
    assert comparison.speedup > 3


def test_json(runs, tmp_path):
    out = tmp_path / "o.json"
    assert cli.main(["compare", "fast", "never", "--runs", str(runs), "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["times"]["never"] == {"digits": None}
    assert content["speedup"] > 1


def test_an_interval_needs_more_than_one_study(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for first, second, interval in (("once", "never", False), ("fast", "slow", True)):
        assert cli.main(["compare", first, second, "--runs", str(runs)]) == 0
        out = capsys.readouterr().out
        assert ("95% of resampled studies" in out, "no interval can be given" in out) == (interval, not interval)
        assert cli.main(["compare", first, second, "--runs", str(runs), "--json", "-"]) == 0
        assert (json.loads(capsys.readouterr().out)["interval"] is not None) == interval


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        ("fast", "nobody", LogError, "No submission 'nobody'"),
        ("fast", "fast", UsageError, "the same submission"),
    ],
)
def test_mistakes(runs, first, second, error, message):
    with pytest.raises(error, match=message):
        compare(CompareOptions(first=first, second=second, runs=(runs,)))


def test_no_directory(tmp_path):
    with pytest.raises(LogError, match="No directory a"):
        compare(CompareOptions(first="a", second="b", runs=(tmp_path / "absent",)))


def test_nothing_in_common(tmp_path, write_reached):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    write_reached(tmp_path, "beta", 0, "mnist", 1, 10.0)
    with pytest.raises(LogError, match="alpha and beta: no workload on which both"):
        compare(CompareOptions(first="alpha", second="beta", runs=(tmp_path,), version="local"))
