"""The kernel that docs/kernels.md adds, file by file, from the page."""

from __future__ import annotations

import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import algoperf_torch.kernels

ROOT = Path(__file__).parents[2]
FILE = re.compile(r"`([\w/]+\.py)`.*?\n\n( *)```python\n(.*?)\n\2```", flags=re.DOTALL)


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    _, section = (ROOT / "docs" / "kernels.md").read_text().split("## Adding a kernel")
    return {path: textwrap.dedent(code) + "\n" for path, _, code in FILE.findall(section)}


@pytest.fixture(scope="module")
def shrink(files, tmp_path_factory):
    """The folder as a part of the package."""
    folder = tmp_path_factory.mktemp("docs")
    for path, code in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(code)
    algoperf_torch.kernels.__path__.append(str(folder / "algoperf_torch" / "kernels"))
    yield import_module("algoperf_torch.kernels.shrink")
    algoperf_torch.kernels.__path__.pop()
    for name in [name for name in sys.modules if name.startswith("algoperf_torch.kernels.shrink")]:
        del sys.modules[name]
    del algoperf_torch.kernels.shrink


def module_of(code: str) -> ModuleType:
    module = ModuleType("from_the_page")
    exec(code, vars(module))
    return module


def test_the_page_has_a_folder_a_test_and_a_benchmark(files):
    folder = "algoperf_torch/kernels/shrink/"
    parts = {folder + name for name in ("reference.py", "fused.py", "__init__.py")}
    assert parts | {"tests/kernels/test_shrink.py", "benchmarks/gpu/shrink.py"} == set(files)
    assert not (ROOT / folder).exists()


def test_its_test_passes(files, shrink, proofs, layout):
    module = module_of(files["tests/kernels/test_shrink.py"])
    module.test_kernel_agrees_with_reference(proofs, layout)
    module.test_nothing_is_left_at_weight_one()


def test_its_operator_is_sound(files, shrink, proofs):
    module_of(files["tests/kernels/test_shrink.py"]).test_operator(proofs)


def test_its_benchmark_runs(files, shrink, device, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    (case,) = module_of(files["benchmarks/gpu/shrink.py"]).cases()
    assert case.name == "shrink/wmt"
    inputs, others = (case.make(torch.device(device), 64) for _ in range(2))
    case.fused(inputs)
    torch.compiler.reset()
    case.peers["compiled"](others)()
    torch.testing.assert_close(inputs.arguments["params"], others.arguments["params"])
