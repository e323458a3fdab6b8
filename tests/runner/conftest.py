"""Trials in this process: uncompiled, on the digits, under an injected clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algoperf_torch.optim.base import TrainingAlgorithm
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
from algoperf_torch.runner.submissions import Submission, load_submission
from algoperf_torch.runner.trial import Trial
from algoperf_torch.runner.validity import Guards
from algoperf_torch.versions import load_version
from algoperf_torch.workloads.registry import build_workload

ALONE = Ranks(0, 1, 0, torch.device("cpu"), None)


@dataclasses.dataclass
class StopRequest:
    requested: bool = False


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what other tests of this process have set for Triton and the compiler."""
    for name in ("TRITON_INTERPRET", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_trial(tmp_path: Path) -> Callable[..., Trial]:
    """`make_trial(algorithm=..., protocol={...}, terms={...}, **options)`: a trial of digits, ready to run.

    `protocol` and `terms` replace fields of the version; everything else is an option of `algoperf_torch.run`.
    """
    records: list[TrialRecord] = []

    def make(
        algorithm: type[TrainingAlgorithm] | None = None,
        *,
        protocol: dict[str, Any] | None = None,
        terms: dict[str, Any] | None = None,
        **given: Any,
    ) -> Trial:
        defaults = {"workload": "digits", "submission": "nadamw", "out": tmp_path / "runs", "compile": False, "seed": 7}
        options = RunOptions(**{**defaults, "clock": "steps:0.1", "max_steps": 60, **given})
        version = load_version(options.version)
        version = dataclasses.replace(
            version,
            protocol=dataclasses.replace(version.protocol, **(protocol or {})),
            base_workloads=("digits",),
            workloads={"digits": dataclasses.replace(version.terms("digits"), **(terms or {}))},
        )
        workload = build_workload(options.workload)
        workload.open()
        guards = Guards(ALONE.device, real_clock=False)
        guards.arm()
        submission = load_submission(options.submission, schedule=options.schedule)
        if algorithm is not None:
            submission = Submission(
                name="custom",
                reference="custom",
                algorithm=algorithm,
                sources=(),
                digest="",
                search_space=None,
                is_registered=False,
            )
        point = hyperparameters_of(options, submission, version)
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
