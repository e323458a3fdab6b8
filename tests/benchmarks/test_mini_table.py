"""The table of docs/mini.md is what the version file and the code say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "mini_table.py"


def test_the_page_shows_the_version():
    spec = importlib.util.spec_from_file_location("algoperf_benchmarks_mini_table", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.text()
    assert len(table.splitlines()) == 2 + len(module.load_version("mini").base_workloads)
    assert module.PAGE.read_text(encoding="utf-8") == module.page_with(table), "run benchmarks/mini_table.py --write"
