"""Shared by the benchmarks: a trial in this process, and how results are printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from algoperf_torch.optim.base import TrainingAlgorithm
from algoperf_torch.runner.build import Parts, build_trial
from algoperf_torch.runner.build import Place as TrialPlace
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.options import RunOptions
from algoperf_torch.runner.record import TrialRecord
from algoperf_torch.runner.submissions import Submission
from algoperf_torch.runner.trial import Trial
from algoperf_torch.runner.validity import Guards
from algoperf_torch.spec import Hyperparameters
from algoperf_torch.versions import load_version
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture
def make_trial(tmp_path: Path) -> Callable[..., Trial]:
    """`make_trial(algorithm, max_steps=..., ...)`: a trial of digits on one rank that never reaches its target."""

    def make(algorithm: type[TrainingAlgorithm], **options: object) -> Trial:
        given = RunOptions(workload="digits", submission="benchmark", out=tmp_path, eval_period=1e6, **options)
        version = load_version("local")
        terms = dataclasses.replace(version.terms("digits"), validation_target=2.0, test_target=2.0)
        version = dataclasses.replace(version, base_workloads=("digits",), workloads={"digits": terms})
        workload = build_workload("digits")
        workload.open()
        ranks = Ranks(0, 1, 0, torch.device("cpu"), None)
        guards = Guards(ranks.device)
        guards.arm()
        submission = Submission(
            name="benchmark",
            reference="benchmark",
            algorithm=algorithm,
            sources=(),
            digest="",
            search_space=None,
            is_registered=False,
        )
        place = TrialPlace(tmp_path, 1, None, fresh=True)
        record = TrialRecord(tmp_path)
        parts = Parts(given, version, workload, submission, Hyperparameters(), ranks, place, guards, record)
        stop = SimpleNamespace(requested=False)
        trial, _ = build_trial(parts, stop=stop, report=lambda *_: None, track=lambda *_: None)
        return trial

    return make
