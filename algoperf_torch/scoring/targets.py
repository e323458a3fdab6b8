"""`algoperf targets`: sets a workload's target and budget from runs, as the benchmark's authors did (arXiv:2306.07179).

1. Several algorithms are tuned; the best point of the best algorithm is the one with the best validation value.
2. It is repeated with other seeds. Validation target: the median of the repeats' best validation values.
3. Test target: the worst of the best test values among the repeats that reach the validation target.
4. Budget: 4/3 of the repeats' training time. Step hint: the steps that they would get within it.
5. Evaluation period: such that evaluations take a fixed share of the training time.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.scoring.logs import Trial, read_logs
from algoperf_torch.scoring.output import best_row
from algoperf_torch.scoring.score import reading_progress
from algoperf_torch.scoring.table import Floats, parse_object, read_bytes
from algoperf_torch.scoring.terminal import printable
from algoperf_torch.spec import Target, higher_is_better
from algoperf_torch.versions import BenchmarkVersion, load_version, version_names

BUDGET_FACTOR = 4 / 3  # budget / training time of the target-setting runs
EVALUATION_SHARE = 0.15  # of the training time: the authors' 10 to 20 %
FEW_REPEATS = 5  # the authors made 20
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class TargetsOptions:
    """Sets targets, budgets and step hints from tuning runs, and writes them as a version."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Tuning runs: each submission is an algorithm, each set of hyperparameters in it a point."""
    repeats: tuple[Path, ...] = ()
    """Repeats of the best points with other seeds. Default: the trials in RUNS that share a point."""
    out: Path = Path("targets.toml")
    """Version file to write."""
    base: str = "local"
    """Version that names the workloads' metrics and that the new one inherits everything else from."""
    name: str = "custom"
    """Name of the new version."""
    budget_factor: float = BUDGET_FACTOR
    """Budget as a multiple of the repeats' training time."""
    evaluation_share: float = EVALUATION_SHARE
    """Share of the training time that evaluations may take."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("No run directory given. Write, for example: algoperf targets runs/ --out mine.toml")
        if self.name in version_names():
            raise UsageError(f"--name {self.name}: a built-in version has this name. Choose another.")
        for option in ("budget_factor", "evaluation_share"):
            if not 0 < getattr(self, option) < math.inf:
                raise UsageError(f"--{option.replace('_', '-')} {getattr(self, option)}: must be a positive number.")


@dataclass(frozen=True, kw_only=True)
class TargetSetting:
    """The terms of one workload, and what they rest on."""

    workload: str
    metric: str
    validation_target: float
    test_target: float | None
    budget_seconds: int
    eval_period_seconds: float
    step_hint: int
    algorithm: str
    point: str  # hyperparameters as JSON
    best_validation: tuple[float, ...]  # of each repeat
    num_points: int  # compared


def set_target(
    workload: str,
    metric: str,
    tuning: Sequence[Trial],
    repeats: Sequence[Trial],
    *,
    budget_factor: float = BUDGET_FACTOR,
    evaluation_share: float = EVALUATION_SHARE,
) -> TargetSetting:
    """Target, budget and hint of one workload.

    Args:
        tuning: trials of all algorithms and points; a point with several trials counts by its median.
        repeats: trials among which those of the best point are looked for; empty: `tuning` itself.

    Raises `LogError` where no tuning trial has a validation value, or no repeat is of the best point.
    """
    higher = higher_is_better(metric)
    points: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in tuning:
        points[trial.submission, _point(trial)].append(trial)
    medians = {
        key: float(np.median([_best(trial, f"validation/{metric}", higher) for trial in trials]))
        for key, trials in points.items()
    }
    if not any(math.isfinite(value) for value in medians.values()):
        raise LogError(f"No run of {workload} has a value of validation/{metric}.")
    algorithm, point = max(medians, key=lambda key: medians[key] if higher else -medians[key])
    chosen = [t for t in (repeats or tuning) if t.submission == algorithm and _point(t) == point]
    if not chosen:
        raise LogError(f"No repeat of the best point of {workload}: {algorithm} with {point}.")
    best = [_best(trial, f"validation/{metric}", higher) for trial in chosen]
    target = Target(metric, _lenient(float(np.median(best)), higher=higher))
    reaching = [trial for trial, value in zip(chosen, best, strict=True) if target.reached(value, strict=False)]
    tests = [value for trial in reaching if math.isfinite(value := _best(trial, f"test/{metric}", higher))]
    training_seconds = float(np.median([trial.seconds[-1] for trial in chosen]))
    budget = math.ceil(budget_factor * training_seconds)
    return TargetSetting(
        workload=workload,
        metric=metric,
        validation_target=target.value,
        test_target=_lenient(min(tests) if higher else max(tests), higher=higher) if tests else None,
        budget_seconds=budget,
        eval_period_seconds=_period(chosen, evaluation_share),
        step_hint=max(1, int(np.median([_steps_within(trial, budget) for trial in chosen]))),
        algorithm=algorithm,
        point=point,
        best_validation=tuple(best),
        num_points=len(points),
    )


def _point(trial: Trial) -> str:
    """A trial's hyperparameters as JSON with sorted keys; `{}` where it has none."""
    path = trial.path / "hparams.json"
    if not trial.has_hyperparameters:
        return "{}"
    try:
        return json.dumps(parse_object(read_bytes(path)), sort_keys=True)
    except LogError as error:
        raise LogError(f"{path}: {error}") from error


def _column(trial: Trial, name: str) -> Floats:
    assert trial.evaluations is not None
    return trial.evaluations.get(name)


def _best(trial: Trial, name: str, higher: bool) -> float:
    """Best value of a run; the worst possible where it has none."""
    row = best_row(_column(trial, name), higher_is_better=higher)
    return (-math.inf if higher else math.inf) if row is None else float(_column(trial, name)[row])


def _lenient(value: float, *, higher: bool) -> float:
    """Rounded to six digits to the side that is easier to reach, and never equal: the harness asks for more than a target."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - DIGITS)
    whole = value / unit  # a value of few digits is a whole number of units but for rounding
    whole = math.ceil(whole - 1e-6) - 1 if higher else math.floor(whole + 1e-6) + 1
    return float(f"{whole * unit:.{DIGITS}g}")


def _steps_within(trial: Trial, seconds: float) -> float:
    """Steps that a run would have made after so many seconds, at its own pace after the first evaluation."""
    steps, times = _column(trial, "global_step"), trial.seconds
    if len(times) < 2 or times[-1] <= times[0]:
        return float(steps[-1] * seconds / times[-1])
    return float(steps[-1] + (steps[-1] - steps[0]) / (times[-1] - times[0]) * (seconds - times[-1]))


def _period(trials: Sequence[Trial], share: float) -> float:
    """Seconds between evaluations so that they take the share of the training time, rounded up to two digits."""
    cost = float(np.median([_column(trial, "accumulated_eval_time")[-1] / len(trial.seconds) for trial in trials]))
    if not math.isfinite(cost) or cost <= 0:
        return 1.0
    unit = 10.0 ** (math.floor(math.log10(cost / share)) - 1)
    return float(f"{math.ceil(cost / share / unit) * unit:.2g}")


def set_targets(options: TargetsOptions) -> list[TargetSetting]:
    """The terms of every workload in the runs. Raises `LogError` for runs that cannot be used."""
    base = load_version(options.base)
    with reading_progress() as progress:
        tuning = _usable(read_logs(options.runs, all_columns=True, progress=progress).trials)
        repeats = (
            _usable(read_logs(options.repeats, all_columns=True, progress=progress).trials) if options.repeats else []
        )
    workloads = sorted({trial.workload for trial in tuning})
    if not workloads:
        raise LogError(f"No finished trial with evaluations in {', '.join(map(str, options.runs))}.")
    return [
        set_target(
            workload,
            base.terms(workload).metric,
            [trial for trial in tuning if trial.workload == workload],
            [trial for trial in repeats if trial.workload == workload],
            budget_factor=options.budget_factor,
            evaluation_share=options.evaluation_share,
        )
        for workload in workloads
    ]


def _usable(trials: Sequence[Trial]) -> list[Trial]:
    return [t for t in trials if t.unusable is None and t.evaluations is not None and len(t.evaluations)]


def version_text(settings: Sequence[TargetSetting], base: BenchmarkVersion, options: TargetsOptions) -> str:
    """The version file: the evidence as comments, then the tables."""
    import tomli_w

    lines = [f"# Written by `algoperf targets` from {', '.join(printable(str(path)) for path in options.runs)}."]
    for each in settings:
        values = ", ".join(f"{value:.6g}" for value in each.best_validation)
        point = printable(f"{each.algorithm} with {each.point}")
        lines.append(
            f"# {each.workload}: {point}, the best of {each.num_points} points; best {each.metric} of its runs: {values}"
        )
    tables = {
        each.workload: {
            "metric": each.metric,
            "validation_target": each.validation_target,
            **({} if each.test_target is None else {"test_target": each.test_target}),
            "budget_seconds": each.budget_seconds,
            "eval_period_seconds": each.eval_period_seconds,
            "step_hint": each.step_hint,
        }
        for each in settings
    }
    inherits = str(Path(options.base).resolve()) if options.base.endswith(".toml") else base.name
    content: dict[str, Any] = {
        "name": options.name,
        "description": f"targets set from own runs; everything else as in {base.name}",
        "inherits": inherits,
        "official": False,
        "base_workloads": list(tables),
        "held_out_workloads": [],
        "workloads": tables,
    }
    return "\n".join(lines) + "\n" + tomli_w.dumps(content)


def main(options: TargetsOptions) -> int:
    """Writes the version file and prints its terms. Raises `LogError` and `UsageError`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if options.out.suffix != ".toml":
        raise UsageError(f"--out {options.out}: a version file ends in .toml.")
    settings = set_targets(options)
    try:
        options.out.write_text(version_text(settings, load_version(options.base), options), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {options.out}: {error.strerror or error}.") from error
    load_version(options.out)  # what cannot be read back is our mistake
    console = Console(highlight=False)
    table = Table()
    for header in (
        "workload",
        "best of",
        "algorithm",
        "repeats",
        "validation",
        "test",
        "budget s",
        "period s",
        "step hint",
    ):
        table.add_column(header)
    for each in settings:
        test = "none" if each.test_target is None else f"{each.test_target:g}"
        cells = (
            each.workload, f"{each.num_points} points", printable(each.algorithm), str(len(each.best_validation)),
            f"{each.metric} {each.validation_target:g}", test, f"{each.budget_seconds:,}", f"{each.eval_period_seconds:g}",
            f"{each.step_hint:,}",
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    console.print(table)
    few = [each.workload for each in settings if len(each.best_validation) < FEW_REPEATS]
    if few:
        console.print(
            Text(f"Fewer than {FEW_REPEATS} repeats: a target of {', '.join(few)} may be luck.", style="yellow")
        )
    console.print(Text(f"Written to {options.out}. Use it with --version {options.out}"))
    return 0
