"""Shared by the benchmarks: a trial in this process, and how results are printed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

import pytest
import torch

from algoperf_torch.optim.base import TrainingAlgorithm
from algoperf_torch.runner import hardware
from algoperf_torch.runner.build import Parts, batch_size_of, build_trial
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


def pytest_configure() -> None:
    hardware.use_huge_pages()  # as every trial does


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
        size = batch_size_of(workload, algorithm.batch_sizes, ranks, None)
        parts = Parts(given, version, workload, submission, Hyperparameters(), size, ranks, place, guards, record)
        stop = SimpleNamespace(requested=False)
        trial, _ = build_trial(parts, stop=stop, report=lambda *_: None, track=lambda *_: None)
        return trial

    return make


@pytest.fixture
def race(benchmark) -> Callable[..., float]:
    """`race(ours, peer, unit=..., work=...)`: both in turns, medians and their ratio printed; returns how many times faster.

    `work` is the number of units that one call of either does. A first call of each is not counted.
    """

    def run(
        ours: Callable[[], object], peer: Callable[[], object], *, unit: str, work: float, rounds: int = 7
    ) -> float:
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}

        def both() -> None:
            for name, function in (("ours", ours), ("peer", peer)):
                started = perf_counter()
                function()
                seconds[name].append(perf_counter() - started)

        both()
        for times in seconds.values():
            times.clear()
        benchmark.pedantic(both, rounds=rounds, iterations=1)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ratio = medians["peer"] / medians["ours"]
        rates = {name: work / median for name, median in medians.items()}
        benchmark.extra_info.update(ratio=ratio, **{f"{name}_{unit}_per_second": rate for name, rate in rates.items()})
        print(f"\nours {rates['ours']:,.0f} {unit}/s, peer {rates['peer']:,.0f} {unit}/s: {ratio:.1f} times")
        return ratio

    return run
