"""Trials of existing submissions in this process: uncompiled, on the digits, under an injected clock."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from algoperf_torch.interop.import_scope import ImportScope
from algoperf_torch.runner import checkpoint
from algoperf_torch.runner.build import (
    Parts,
    batch_size_of,
    build_trial,
    first_summary,
    hyperparameters_of,
    identity,
    share_place,
)
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.options import RunOptions
from algoperf_torch.runner.record import TrialRecord
from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.runner.trial import Trial
from algoperf_torch.runner.validity import Guards
from algoperf_torch.spec import Ruleset
from algoperf_torch.versions import load_version
from algoperf_torch.workloads.registry import build_workload

SUBMISSIONS = Path(__file__).parent / "submissions"
ALONE = Ranks(0, 1, 0, torch.device("cpu"), None)

# A submission of which a test changes a part; `RECORD` gets what its functions are handed.
PLAIN = """
import torch
from algoperf import spec

RECORD = []

def get_batch_size(workload_name):
    return 64

def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    return {"optimizer": torch.optim.SGD(model_params.parameters(), lr=0.1)}

def forward(workload, params, batch, **options):
    return workload.model_fn(
        params=params, augmented_and_preprocessed_input_batch=batch, model_state=None, rng=[0, 0],
        **{"mode": spec.ForwardPassMode.TRAIN, "update_batch_norm": True, **options})

def update_params(workload, current_param_container, current_params_types, model_state, hyperparameters, batch,
                  loss_type, optimizer_state, eval_results, global_step, rng):
    optimizer_state["optimizer"].zero_grad()
    logits, _ = forward(workload, current_param_container, batch)
    losses = workload.loss_fn(label_batch=batch["targets"], logits_batch=logits)
    (losses["summed"] / losses["n_valid_examples"]).backward()
    optimizer_state["optimizer"].step()
    return optimizer_state, current_param_container, None

def data_selection(workload, input_queue, optimizer_state, current_param_container, model_state, hyperparameters,
                   global_step, rng):
    return next(input_queue)
"""


@dataclasses.dataclass
class StopRequest:
    requested: bool = False


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what other tests of this process have set for Triton and the compiler; looks for modules left behind."""
    for name in ("TRITON_INTERPRET", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    earlier = {name: sys.modules.pop(name) for name in injected_modules()}  # files that other tests have loaded
    path = list(sys.path)
    yield
    left = injected_modules()
    sys.modules.update(earlier)
    assert left == []
    assert not [finder for finder in sys.meta_path if isinstance(finder, ImportScope)]
    assert sys.path == path


def injected_modules() -> list[str]:
    tops = {
        "algoperf",
        "algorithmic_efficiency",
        "submissions",
        "archive",
        "core",
        "rules",
        "kit_types",
        "utils",
        "helpers",
        "part",
    }
    return [name for name in sys.modules if name.partition(".")[0] in tops or name.startswith("algoperf_submission_")]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(code, name="mine")`: the folder of a submission made of `PLAIN` and `code`, which may define its parts anew."""

    def write(code: str = "", name: str = "mine", *, plain: str = PLAIN) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "submission.py").write_text(plain + textwrap.dedent(code))
        return folder

    return write


@pytest.fixture
def make_trial(tmp_path: Path) -> Iterator[Callable[..., Trial]]:
    """`make_trial(path, **options)`: a trial of digits, ready to run, with the options of `algoperf_torch.run`."""
    records: list[TrialRecord] = []

    def make(path: Path, **given: Any) -> Trial:
        defaults = {"workload": "digits", "out": tmp_path / "runs", "compile": False, "seed": 7, "clock": "steps:0.1"}
        given["ruleset"] = Ruleset(given.get("ruleset", "external"))
        options = RunOptions(submission=str(path), **{**defaults, "max_steps": 12, **given})
        version = load_version(options.version)
        workload = build_workload(options.workload)
        workload.open()
        guards = Guards(ALONE.device, real_clock=False)
        guards.arm()
        submission = load_submission(options.submission)
        point = hyperparameters_of(options, submission, version)
        submission.algorithm.check_hyperparameters(point)
        place = share_place(options, submission.name, ALONE)
        record = TrialRecord(place.directory)
        records.append(record)
        size = batch_size_of(workload, submission.algorithm.batch_sizes, ALONE, options.micro_batch)
        parts = Parts(options, version, workload, submission, point, size, ALONE, place, guards, record)
        saved = checkpoint.load(place.checkpoint, identity=identity(parts)) if place.checkpoint else None
        record.start(first_summary(parts, {}, []), dict(point))
        trial, _ = build_trial(parts, saved, stop=StopRequest(), report=lambda *_: None, track=lambda *_: None)
        return trial

    torch.manual_seed(0)
    yield make
    for record in records:
        record.close()


@pytest.fixture
def release() -> Callable[[Trial], None]:
    """`release(trial)` does what the end of a process does: the lock on the trial's directory goes."""

    def release(trial: Trial) -> None:
        for link in Path("/proc/self/fd").iterdir():
            if os.path.realpath(link) == str(trial.record.directory / ".lock"):
                fcntl.flock(int(link.name), fcntl.LOCK_UN)

    return release
