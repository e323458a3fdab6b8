"""Every kernel, compiled ahead of time for both architectures with the block sizes in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have
NARROW = {  # kernels whose 128-bit loads alignment does not allow
    "crop_resize_kernel": "reads single bytes at places that the crop decides",
    "factor_columns_kernel": "reads column sums of matrices of any width",
    "magnitude_kernel": "reads every other number: complex values lie in pairs",
    "mask_kernel": "likewise",
    "ssim_kernel": "windows begin at every pixel",
}
ODD_VOCABULARY = "finewebedu_lm"  # 50257 classes: rows begin at any multiple of 4 bytes


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("resources") / "found.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels.resources", "--json", str(file), "--check", "docs/kernels.md"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(file.read_text())


def test_registers_shared_memory_and_loads(found):
    for row in found["resources"]:
        where = f"{row['case']}, {row['kernel']} on sm_{row['arch']}"
        assert row["spilled"] == 0, f"{where} spills"
        assert row["shared"] <= SHARED_LIMIT[row["arch"]], where
        if row["kernel"] not in NARROW and ODD_VOCABULARY not in row["case"]:
            assert row["wide_loads"] > 0, f"{where} reads no 128-bit words"


def test_every_kernel_was_compiled(found):
    """The kernels of the sources are those that cases launch."""
    import re

    sources = (ROOT / "algoperf_torch" / "kernels").glob("*/fused.py")
    defined = {
        name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)
    }
    assert {row["kernel"] for row in found["resources"]} == defined
    assert {row["arch"] for row in found["resources"]} == {80, 90}


def test_updates_ask_for_little_more_than_must_move(found):
    for row in found["bytes"]:
        assert 1.0 <= row["asked"] / row["least"] < 1.1, row["case"]
