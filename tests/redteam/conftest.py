"""A trial of the digits in this process, as `algoperf_torch.run` runs it, with a submission that is up to something."""

from __future__ import annotations

import functools
import json
import os
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from algoperf_torch.errors import AlgoPerfError
from algoperf_torch.runner import clock, evaluate, execute, hardware, validity
from algoperf_torch.runner.options import RunOptions
from algoperf_torch.runner.validity import Guards, Limits
from algoperf_torch.workloads.digits.workload import DigitsWorkload

HONEST = """
import os, socket, subprocess, sys, threading, time
import torch
from torch.nn import functional
from algoperf_torch import OptimizerAlgorithm

class Submission(OptimizerAlgorithm):
    optimizer_class = torch.optim.SGD
    defaults = {"lr": 0.1, "momentum": 0.9}
"""

# Flags of these say that this machine was busy while the test ran.
NOISE = frozenset({"step_time", "calibration", "data_stall"})

# Where submissions of these tests leave traces that the next test must not see.
PATCHED = (clock, clock.WallClock, evaluate, hardware, torch.cuda, torch.nn.functional, DigitsWorkload)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: exit status or error, `trial.json`, and what was printed."""

    exit_code: int
    summary: dict[str, Any]
    directory: Path | None
    error: AlgoPerfError | None = None

    @property
    def flags(self) -> dict[str, str]:
        """Severity of the flags, by the guard's name."""
        found: dict[str, str] = {}
        for flag in self.summary.get("validity", {}).get("flags", []):
            found[flag["name"]] = "void" if "void" in (flag["severity"], found.get(flag["name"])) else "warn"
        return {name: severity for name, severity in found.items() if name not in NOISE}

    def reason(self, name: str) -> str:
        return next(flag["reason"] for flag in self.summary["validity"]["flags"] if flag["name"] == name)


Attack = Callable[..., Outcome]


@contextmanager
def traces_removed() -> Iterator[None]:
    """Puts back what a submission has replaced or switched."""
    names = {owner: dict(vars(owner)) for owner in PATCHED}
    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    variables = dict(os.environ)
    yield
    for owner, before in names.items():
        for name in [name for name in vars(owner) if name not in before]:
            delattr(owner, name)
        for name, value in before.items():
            if vars(owner)[name] is not value:
                setattr(owner, name, value)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    for name in set(os.environ) - set(variables):
        del os.environ[name]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what other tests of this process have set for Triton and the compiler."""
    for name in ("TRITON_INTERPRET", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """`attack(code, disabled=(), limits=None, **options)`: runs `HONEST` with `code` added to the class's body."""
    numbers = iter(range(1000))
    evaluation_file = tmp_path / "validation.bin"
    evaluation_file.write_bytes(bytes(4096))
    monkeypatch.setattr(DigitsWorkload, "evaluation_files", lambda self: [evaluation_file])
    monkeypatch.setenv("EVALUATION_FILE", str(evaluation_file))
    monkeypatch.setattr(validity, "calibrate", lambda device: 0.01)  # a fifth of a second a trial

    def run(
        code: str = "",
        *,
        before: str = "",
        disabled: Any = (),
        limits: Limits | None = None,
        **options: Any,
    ) -> Outcome:
        number = next(numbers)
        source = tmp_path / f"submission_{number}.py"
        source.write_text(textwrap.dedent(before) + HONEST + textwrap.indent(textwrap.dedent(code), "    "))
        arguments = {"disabled": disabled} if limits is None else {"disabled": disabled, "limits": limits}
        monkeypatch.setattr(execute, "Guards", functools.partial(Guards, **arguments))
        given = {
            "workload": "digits",
            "submission": f"{source}:Submission",
            "compile": False,
            "seed": 5,
            "max_steps": 3,
        }
        choices = RunOptions(**{**given, "out": tmp_path / f"runs_{number}", "checkpoint": False, **options})
        with traces_removed():
            try:
                exit_code, error = execute.execute(choices), None
            except AlgoPerfError as caught:
                exit_code, error = caught.exit_code, caught
        found = list(choices.out.rglob("trial.json"))
        summary = json.loads(found[0].read_text()) if found else {}
        return Outcome(exit_code, summary, found[0].parent if found else None, error)

    return run
