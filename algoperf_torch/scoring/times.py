"""Time to target: from the evaluations of trials to one number of seconds per submission and workload.

Arrays have axes [submission, workload, study]. Infinity: the target was not reached. NaN: there is no result, either because
the study does not exist or because it says nothing about the algorithm (a void, unfinished or damaged trial).
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from algoperf_torch.scoring.logs import Logs, Trial
from algoperf_torch.scoring.table import Floats, as_old_pandas
from algoperf_torch.spec import Ruleset, Target
from algoperf_torch.versions import BenchmarkVersion


class Rule(enum.StrEnum):
    """How scores are computed."""

    OFFICIAL = "official"  # as the code that made the published tables
    DOCUMENTED = "documented"  # as the written rules


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What one study says about one submission on one workload."""

    seconds: float  # inf: target not reached; NaN: no result
    steps: float  # at that time; inf and NaN as above
    trial: Trial | None = None  # the one that was chosen
    row: int | None = None  # its evaluation, counted from 0
    why: str | None = None  # why there is no result, or what the rule left out


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyTimes:
    """Times and steps to target of every study."""

    submissions: tuple[str, ...]
    workloads: tuple[str, ...]
    studies: tuple[int, ...]
    seconds: Floats  # [submission, workload, study]
    steps: Floats
    results: dict[tuple[str, str, int], StudyResult]


def first_hit(values: Floats, target: Target, *, strict: bool = False) -> int | None:
    """Index of the first value that is at least as good as the target, or, if `strict`, better; NaN never is."""
    better = values > target.value if target.higher_is_better else values < target.value
    hits = np.flatnonzero(better if strict else better | (values == target.value))
    return int(hits[0]) if hits.size else None


def median_over_studies(values: Floats) -> Floats:
    """Median over the last axis, NaN left out; the mean of the middle two if their number is even.

    Infinity counts as a value, and the mean of infinity and a number is infinity. NaN where there is no value.
    """
    ordered = np.sort(values, axis=-1)  # NaN comes last
    count = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)[..., 0]
    high = np.take_along_axis(ordered, np.maximum(count, 1) // 2 if ordered.shape[-1] > 1 else count * 0, axis=-1)[
        ..., 0
    ]
    return np.where(low == high, low, (low + high) / 2)


def official_study_result(trials: Sequence[Trial], target: Target, prefix: str = "validation") -> StudyResult:
    """The trial whose first hit has the lowest evaluation index, whatever its time; ties go to the lower trial number.

    Trials without evaluations do not exist for this rule, nor does anything that only our logs say.
    """
    best: tuple[int, Trial] | None = None
    some = False
    for trial in trials:
        if trial.evaluations is None:
            continue
        some = True
        row = first_hit(trial.evaluations.get(f"{prefix}/{target.metric}"), target)
        if row is not None and (best is None or row < best[0]):
            best = row, trial
    if not some:
        return StudyResult(seconds=math.nan, steps=math.nan, why="no evaluations")
    if best is None:
        return StudyResult(seconds=math.inf, steps=math.inf)
    result = _result(best[1], best[0])
    # The published numbers went through the reader twice: with the logs, and with the table of times.
    return replace(result, seconds=as_old_pandas(as_old_pandas(result.seconds)))


def documented_study_result(
    trials: Sequence[Trial], target: Target, budget_seconds: float | None, prefix: str = "validation"
) -> StudyResult:
    """The smallest time of all trials at which the metric is better than the target, as the harness tests it.

    No result where a trial is void, unfinished or damaged.

    Args:
        budget_seconds: a hit at or beyond this time does not count; None: no limit.
    """
    left_out = None
    best: tuple[float, int, Trial] | None = None
    for trial in trials:
        if trial.irregular:
            left_out = f"trial {trial.number} left out: {trial.irregular}"
            continue
        if trial.unusable:
            return StudyResult(seconds=math.nan, steps=math.nan, why=f"trial {trial.number}: {trial.unusable}")
        if trial.evaluations is None:
            continue
        values, seconds = trial.evaluations.get(f"{prefix}/{target.metric}"), trial.seconds
        if budget_seconds is not None and np.any(late := seconds >= budget_seconds):
            values = np.where(late, np.nan, values)
        row = first_hit(values, target, strict=True)
        if row is not None and (best is None or seconds[row] < best[0]):
            best = float(seconds[row]), row, trial
    if best is None:
        return StudyResult(seconds=math.inf, steps=math.inf, why=left_out)
    return _result(best[2], best[1], left_out)


def _result(trial: Trial, row: int, why: str | None = None) -> StudyResult:
    assert trial.evaluations is not None
    steps = float(trial.evaluations.get("global_step")[row])
    return StudyResult(seconds=float(trial.seconds[row]), steps=steps, trial=trial, row=row, why=why)


def study_times(
    logs: Logs,
    version: BenchmarkVersion,
    workloads: Sequence[str],
    *,
    ruleset: Ruleset,
    rule: Rule,
    split: str = "validation",
) -> StudyTimes:
    """Time to target of every submission, workload and study.

    Args:
        workloads: those wanted; other trials are left out.
        split: `validation` or `test`, whose target is meant. All times are NaN where a version has no test target.

    Under the documented rule of an official version, exactly the studies of the version count: one that has no trial is a
    study that did not reach its target, and those beyond their number are left out.
    """
    groups: dict[tuple[str, str, int], list[Trial]] = defaultdict(list)
    wanted = frozenset(workloads)
    for trial in logs.trials:
        if trial.workload in wanted:
            groups[trial.submission, trial.workload, trial.study].append(trial)
    complete = rule is Rule.DOCUMENTED and version.official
    studies = sorted({study for _, _, study in groups})
    if complete:
        studies = list(range(version.tuning.studies))
    submissions = logs.submissions
    shape = (len(submissions), len(workloads), len(studies))
    seconds, steps = np.full(shape, np.nan), np.full(shape, np.nan)
    results = {}
    for w, workload in enumerate(workloads):
        terms = version.terms(workload)
        target = terms.validation if split == "validation" else terms.test
        if target is None:
            continue
        budget = version.budget_seconds(workload, ruleset) if version.official else None
        for s, submission in enumerate(submissions):
            for j, study in enumerate(studies):
                trials = groups.get((submission, workload, study), [])
                if rule is Rule.OFFICIAL:
                    result = official_study_result(trials, target, split)
                elif trials:
                    result = documented_study_result(trials, target, budget, split)
                else:
                    missing = math.inf if complete else math.nan
                    result = StudyResult(seconds=missing, steps=missing, why="no trials")
                seconds[s, w, j], steps[s, w, j] = result.seconds, result.steps
                if trials or complete:
                    results[submission, workload, study] = result
    return StudyTimes(
        submissions=submissions,
        workloads=tuple(workloads),
        studies=tuple(studies),
        seconds=seconds,
        steps=steps,
        results=results,
    )
