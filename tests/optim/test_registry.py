"""The records of the registry, and what stands about them in the files and in the docs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from algoperf_torch.errors import UnknownNameError
from algoperf_torch.optim import registry

DOCS = Path(__file__).parents[2] / "docs" / "optimizers.md"


def test_names_are_sorted_and_documented():
    assert list(registry.ALGORITHMS) == registry.algorithm_names()
    text = DOCS.read_text(encoding="utf-8")
    for name, record in registry.ALGORITHMS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {record.schedule} |" in row
    for prefix in registry.WRAPPERS:
        assert f"| `{prefix}:` |" in text


def test_every_search_space_belongs_to_an_algorithm():
    named = {record.search_space for record in registry.ALGORITHMS.values()} - {None}
    assert named == {path.name for path in registry.FOLDER.glob("*.json")}
    for name in named:
        points = json.loads((registry.FOLDER / name).read_text())
        assert len({json.dumps(point, sort_keys=True) for point in points}) == 5
        assert len({frozenset(point) for point in points}) == 1  # AlgoPerf: all entries have the keys of the first


def test_every_source_names_its_paper():
    for record in registry.ALGORITHMS.values():
        source = (registry.FOLDER / f"{record.target.partition(':')[0]}.py").read_text(encoding="utf-8")
        docstring = source.split('"""')[1]
        assert "arXiv:" in docstring or "et al." in docstring
        assert "earch space" in docstring


def test_self_tuning_algorithms_have_no_search_space():
    assert [name for name, record in registry.ALGORITHMS.items() if record.search_space_file is None] == [
        "nadamw_default",
        "schedule_free_default",
    ]


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="Unknown submission 'adam'"):
        registry.find("adam")
