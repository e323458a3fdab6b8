"""The tiny trial as fixtures, in this process and on two ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny.py` beside this file."""
    spec = importlib.util.spec_from_file_location("algoperf_tests_tiny", HERE / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Trains submissions on two gloo ranks; returns, by reference, what `two_ranks.py` saved on rank 0."""

    def run(references: list[str], *, steps: int, hyperparameters: dict | None = None, evaluate_every: int = 0) -> dict:
        out = tmp_path_factory.mktemp("two_ranks") / "result.pt"
        job = {
            "references": references,
            "steps": steps,
            "hyperparameters": hyperparameters or {},
            "evaluate_every": evaluate_every,
            "out": str(out),
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
        done = subprocess.run(
            [*command, str(HERE / "two_ranks.py"), json.dumps(job)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return torch.load(out, weights_only=True)

    return run
