"""The benchmarks of kernels run without a device on tiny inputs, to show that they would run with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(("tyro", "soundfile", "submitit", "sklearn", "h5py")))  # importing one raises
import runpy
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, "--device", "cpu", "--small", "--rounds", "1", "--out", str(out)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    done = run(out, "--only", "ema", "sgd")
    assert done.returncode == 0, done.stderr
    return out


def test_one_file_for_each_operation(finished):
    assert {file.name for file in finished.iterdir()} == {"ema.json", "sgd.json"}
    report = json.loads((finished / "ema.json").read_text())
    assert {"device", "torch", "triton", "commit", "script", "date"} <= report.keys()
    (case,) = report["cases"]
    assert case["case"] == "ema/wmt"
    assert case["bytes"] == 12 * case["parameters"]
    assert set(case["times_faster"]) == {"foreach", "compiled"}


def test_what_there_is_no_time_for_is_named_and_taken_up(finished):
    done = run(finished, "--only", "ema", "sgd", "lion", "--resume", "--minutes", "0")
    assert done.returncode == 3
    assert "Not begun after 0 minutes: lion." in done.stderr
