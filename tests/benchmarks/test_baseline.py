"""Ratios of benchmarks against the committed ones of the same class of machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "baseline.py"


@pytest.fixture(scope="module")
def baseline():
    spec = importlib.util.spec_from_file_location("algoperf_benchmarks_baseline", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(baseline, tmp_path, monkeypatch):
    """`run(ratios, *arguments)`: exit status for a report with these ratios."""
    monkeypatch.setattr(baseline, "cpu_model", lambda: "Fast(R) CPU @ 3.00GHz")
    monkeypatch.setattr(baseline, "usable_cpus", lambda: 2)

    def call(ratios: dict[str, float | None], *arguments: str) -> int:
        rows = [
            {"fullname": name, "extra_info": {} if ratio is None else {"ratio": ratio}}
            for name, ratio in ratios.items()
        ]
        report = tmp_path / "latest.json"
        report.write_text(json.dumps({"benchmarks": rows, "commit_info": {"id": "abc"}}))
        return baseline.main([str(report), "--folder", str(tmp_path / "results"), *arguments])

    return call


def test_an_unknown_machine_is_told_and_does_not_fail(run, capsys):
    assert run({"a": 1.0}) == 0
    assert "No baseline for machines of the class fast-r-cpu-3-00ghz-2" in capsys.readouterr().out


def test_a_ratio_that_falls_fails(run, capsys):
    assert run({"a": 10.0, "b": 2.0, "seconds only": None}, "--update") == 0
    assert "2 ratios are now the baseline" in capsys.readouterr().out
    assert run({"a": 7.5, "b": 2.4, "c": 1.0}) == 0  # within the tolerance; better; new
    assert "c: 1.00 (baseline new)" in capsys.readouterr().out
    assert run({"a": 6.9, "b": 2.0}) == 1
    told = capsys.readouterr()
    assert "WORSE a: 6.90 (baseline 10.00)" in told.out
    assert "1 of 2 ratios fell by more than 30%" in told.err
    assert run({"a": 6.9}, "--tolerance", "0.5") == 0
    assert "b: not run" in capsys.readouterr().out


def test_a_missing_report_is_told(baseline, tmp_path, capsys):
    assert baseline.main([str(tmp_path / "none.json")]) == 2
    assert "Run `make bench`" in capsys.readouterr().err


def test_an_update_of_some_keeps_the_others(run, tmp_path):
    run({"a": 10.0, "b": 2.0}, "--update")
    run({"a": 5.0}, "--update")
    (file,) = tmp_path.glob("results/*/ratios.json")
    saved = json.loads(file.read_text())
    assert saved["ratios"] == {"a": 5.0, "b": 2.0}
    assert (saved["processor"], saved["processors"], saved["commit"]) == ("Fast(R) CPU @ 3.00GHz", 2, "abc")


def test_committed_baselines_are_of_this_form(baseline):
    for file in baseline.FOLDER.glob("*/ratios.json"):
        saved = json.loads(file.read_text())
        assert saved["ratios"]
        assert all(ratio > 0 for ratio in saved["ratios"].values())
        assert file.parent.name.endswith(f"-{saved['processors']}")
