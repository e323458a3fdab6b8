"""The package as a whole: who may import whom, what importing costs, what the wheel holds."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import algoperf_torch

ROOT = Path(algoperf_torch.__file__).parent
EVERYBODY_MAY = {"errors", "spec", "versions"}
MAY_IMPORT = {  # DESIGN: the parts, and what each may know of besides itself and the vocabulary
    "kernels": set(),
    "data": {"kernels"},
    "workloads": {"data", "kernels"},
    "optim": {"kernels"},
    "scoring": set(),
    "interop": {"optim", "scoring"},
    "runner": {"workloads", "optim", "data", "interop", "kernels"},
    "versions": set(),
    "spec": set(),
    "errors": set(),
    "run": {"runner"},
    "demo": {"scoring"},
    "cli": {"runner", "scoring", "workloads", "data", "optim", "interop"},
}


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
            if node.module == "algoperf_torch":
                names = [f"algoperf_torch.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("algoperf_torch.")}
    return parts


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    part = part_of(path)
    if part == "__init__":
        return
    allowed = MAY_IMPORT[part] | EVERYBODY_MAY | {part}
    assert imported_parts(path) - allowed <= {"__version__"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import algoperf_torch", {"torch", "numpy", "pandas", "tyro", "rich"}),
        ("from algoperf_torch import Hyperparameters", {"torch", "numpy"}),
        ("import algoperf_torch.cli", {"torch", "numpy", "pandas", "tyro", "rich"}),
        ("import algoperf_torch.scoring", {"torch", "tyro", "matplotlib", "plotly"}),
        ("import algoperf_torch.versions", {"torch", "numpy"}),
        (
            "import algoperf_torch.optim.base",
            {"tyro", "pandas", "sklearn", "algoperf_torch.workloads", "algoperf_torch.data"},
        ),
        ("import algoperf_torch.optim.registry", {"torch"}),
        ("import algoperf_torch.workloads.registry", {"torch"}),
        ("import algoperf_torch.workloads.digits.workload", {"tyro", "sklearn", "pandas", "algoperf_torch.optim"}),
    ],
)
def test_importing_a_part_loads_no_other(statement, absent):
    assert not modules_after(statement) & absent


def test_importing_changes_no_setting():
    code = """
import torch
state = lambda: (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.get_num_threads(),
                 torch.are_deterministic_algorithms_enabled(), torch.initial_seed(), torch.is_grad_enabled())
before = state()
import algoperf_torch.runner.execute
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    assert algoperf_torch.__all__ == sorted(algoperf_torch.__all__)
    for name in algoperf_torch.__all__:
        assert getattr(algoperf_torch, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = algoperf_torch.nothing


def test_help_costs_little_more_than_starting_python():
    def seconds(*arguments: str) -> float:
        times = []
        for _ in range(7):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    bare, helped = seconds("-c", "pass"), seconds("-m", "algoperf_torch.cli", "--help")
    assert helped <= 20 * bare


def test_the_wheel_holds_one_package_and_its_data(tmp_path):
    project = ROOT.parent
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(project)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"algoperf_torch"}
    in_tree = {
        str(path.relative_to(project))
        for path in ROOT.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert in_tree <= set(names)
    for suffix in (".toml", ".json", ".py", "py.typed"):
        assert any(name.endswith(suffix) for name in names)
