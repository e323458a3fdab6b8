from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import algoperf_torch.kernels
from algoperf_torch.errors import UnknownNameError
from algoperf_torch.kernels import registry

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
FOLDER = Path(algoperf_torch.kernels.__file__).parent
OPERATIONS = sorted(path.parent.name for path in FOLDER.glob("*/fused.py"))


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    monkeypatch.setattr(registry, "_choice", "default")
    monkeypatch.setattr(registry, "_used", set())


@pytest.mark.parametrize(
    ("choice", "update", "path"), [("default", True, False), ("fused", True, True), ("reference", False, False)]
)
def test_what_runs_on_a_device(choice, update, path):
    registry.choose(choice)
    assert registry.runs_fused("adam_", CUDA, update=True) is update
    assert registry.runs_fused("ssim", CUDA) is path
    assert registry.used() == tuple(name for name, ran in (("adam_", update), ("ssim", path)) if ran)


def test_a_path_that_was_measured_runs_by_default(monkeypatch):
    monkeypatch.setattr(registry, "MEASURED", frozenset({"ssim"}))
    assert registry.runs_fused("ssim", CUDA)


@pytest.mark.parametrize("choice", ["default", "fused", "reference"])
def test_the_reference_runs_on_the_cpu(choice):
    registry.choose(choice)
    assert not registry.runs_fused("adam_", CPU, update=True)
    assert registry.used() == ()


def test_loading_registers_all_operations():
    code = """
import torch
from algoperf_torch.kernels import registry
registry.load()
print(*{name.split("/")[1] for name in torch.library._impls if name.startswith("algoperf/")})
import sys
assert "triton" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"adam_", "ema_", "cross_entropy", "ssim", "clip_coefficient", "newton_schulz", "category_ids"} <= set(found)


def test_unknown_choice():
    with pytest.raises(UnknownNameError, match="Must be one of: default, fused, reference"):
        registry.choose("fastest")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_reference_operator_test_and_benchmark(operation):
    assert (FOLDER / operation / "reference.py").exists()
    assert (Path(__file__).parent / f"test_{operation}.py").exists()
    assert (Path(__file__).parents[2] / "benchmarks" / "gpu" / f"{operation}.py").exists()
    import_module(f"algoperf_torch.kernels.{operation}")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_reference_and_kernel_have_one_signature(operation):
    import inspect

    package = f"algoperf_torch.kernels.{operation}"
    fused, reference = (import_module(f"{package}.{name}") for name in ("fused", "reference"))
    shared = [
        name
        for name, function in vars(reference).items()
        if inspect.isfunction(function) and function.__module__ == reference.__name__ and not name.startswith("_")
    ]
    assert shared
    for name in shared:
        theirs, ours = (
            [p for p in inspect.signature(getattr(module, name)).parameters.values() if p.name != "table"]
            for module in (reference, fused)
        )
        assert [(p.name, p.default, p.kind, p.annotation) for p in ours] == [
            (p.name, p.default, p.kind, p.annotation) for p in theirs
        ], name
