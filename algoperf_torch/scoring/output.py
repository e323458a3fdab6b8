"""Files that the scorer writes: JSON, and tables in the layout of the official scorer."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoperf_torch.errors import UsageError
from algoperf_torch.scoring import profile
from algoperf_torch.scoring.score import ScoreResult
from algoperf_torch.scoring.times import Rule, first_hit


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Raises `UsageError` where the file cannot be written; `-` is standard output."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if path == Path("-"):
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_csv(result: ScoreResult, folder: Path) -> None:
    """`time_to_targets.csv`, `performance_profile_score.csv`, `scores.csv` and a `<submission>_summary.csv` for each.

    Raises `UsageError` where they cannot be written.
    """
    standing, names = result.standing, result.submissions
    order = sorted(range(len(result.workloads)), key=lambda w: result.workloads[w])
    at = profile.taus()
    rho = profile.profile(standing.ratios, at)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(
            folder / "time_to_targets.csv",
            ["submission", *(result.workloads[w] for w in order)],
            ([name, *standing.times[s, order].tolist()] for s, name in enumerate(names)),
        )
        _write(
            folder / "performance_profile_score.csv",
            ["submission", *at.tolist()],
            ([name, *rho[s].tolist()] for s, name in enumerate(names)),
        )
        _write(folder / "scores.csv", ["submission", "score"], result.scores.items())
        for name in names:
            _write(folder / f"{file_name(name)}_summary.csv", SUMMARY, _summary(result, name))
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror or error}.") from error


def file_name(label: str) -> str:
    """A submission's label as a part of a file name."""
    return re.sub(r"[^\w.+=-]", "_", label)


SUMMARY = (
    "workload", "study", "trial", "val target metric name", "val target metric value", "target reached", "best metric value",
    "time to best eval", "time to target", "median step time", "step hint",
)  # fmt: skip


def _summary(result: ScoreResult, submission: str) -> Iterator[list[object]]:
    """A row for each trial with evaluations; step times are medians over all trials of a workload."""
    for workload in result.workloads:
        terms = result.version.terms(workload)
        trials = [
            trial
            for trial in result.logs.trials
            if trial.submission == submission and trial.workload == workload and trial.evaluations is not None
        ]
        step_times = []
        for trial in trials:
            assert trial.evaluations is not None
            steps = np.diff(trial.evaluations.get("global_step"), prepend=0)
            seconds = np.diff(trial.seconds, prepend=0)
            step_times.append((seconds / np.where(steps > 0, steps, np.nan)).ravel())
        known = np.concatenate(step_times) if step_times else np.empty(0)
        known = known[np.isfinite(known)]
        step_time = float(np.median(known)) if known.size else float("nan")
        for trial in trials:
            assert trial.evaluations is not None
            values = trial.evaluations.get(f"validation/{terms.metric}")
            hit = first_hit(values, terms.validation, strict=result.rule is Rule.DOCUMENTED)
            best = best_row(values, higher_is_better=terms.validation.higher_is_better)
            yield [
                workload, trial.study, trial.number, terms.metric, terms.validation_target, hit is not None,
                float("nan") if best is None else float(values[best]),
                float("nan") if best is None else float(trial.seconds[best]),
                float("inf") if hit is None else float(trial.seconds[hit]),
                step_time, terms.step_hint,
            ]  # fmt: skip


def best_row(values: np.ndarray[Any, np.dtype[np.float64]], *, higher_is_better: bool) -> int | None:
    """Index of the best value; None where all are NaN."""
    if np.isnan(values).all():
        return None
    return int(np.nanargmax(values) if higher_is_better else np.nanargmin(values))


def _write(path: Path, header: Sequence[object], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
