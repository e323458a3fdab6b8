"""The table of compiled models in docs/workloads.md is what was measured, and names every workload."""

import importlib.util
import json
from pathlib import Path

import pytest

from algoperf_torch.workloads.registry import workload_spec

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results" / "amd-epyc-2"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("workload_table", BENCHMARKS / "workloads" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def content():
    return json.loads((RESULTS / "workloads.json").read_text())


def test_the_document_shows_what_was_measured(table, content, tmp_path):
    text = table.DOCUMENT.read_text(encoding="utf-8")
    assert text.split(table.BEGIN)[1].split(table.END)[0].strip() == table.render(content)
    copy = tmp_path / "workloads.md"
    copy.write_text(text)
    table.write(RESULTS, copy)
    assert copy.read_text() == text


def test_the_table_has_every_workload(table, content):
    assert sorted(content["rows"]) == sorted(table.names())
    assert len(table.names()) == 33


def test_every_model_compiles_once(content):
    for name, row in content["rows"].items():
        assert row["graphs"] == 2, name  # model and loss
        assert row["graph_breaks"] == row["recompilations"] == 0, name
        if row["scale"] == "full":
            assert row["parameters"] == workload_spec(name).num_parameters
