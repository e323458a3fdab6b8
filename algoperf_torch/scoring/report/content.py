"""What the report shows, as plain values: rows of its tables and the numbers behind its charts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from algoperf_torch.errors import LogError
from algoperf_torch.scoring.logs import Severity, Trial
from algoperf_torch.scoring.output import best_row
from algoperf_torch.scoring.score import ScoreResult, censoring_budgets
from algoperf_torch.scoring.statistics import compare_times
from algoperf_torch.scoring.table import Floats, parse_object, read_bytes
from algoperf_torch.scoring.terminal import printable
from algoperf_torch.scoring.times import Rule, first_hit

MAX_POINTS = 250_000  # evaluations drawn in all; each trial keeps at least 16
MAX_PAIRS = 66  # comparisons of twelve submissions
PHASES = ("compute", "data", "compile", "evaluation", "logging", "setup")


def build(result: ScoreResult, title: str) -> dict[str, Any]:
    """Everything that the page needs. Numbers that are not finite are None."""
    records = {trial.path: _record(trial) for trial in result.logs.trials}
    content = {
        "title": title,
        "generated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": result.version.name,
        "description": result.version.description,
        "ruleset": result.ruleset.value,
        "rule": result.rule.value,
        "other_rule": next(rule for rule in Rule if rule is not result.rule).value,
        "num_trials": len(result.logs.trials),
        "reference": result.reference,
        "submissions": [printable(name) for name in result.submissions],
        "workloads": [_workload(result, w) for w in range(len(result.workloads))],
        "num_base": result.num_base,
        "warnings": [printable(text) for text in result.warnings],
        "board": [_board_row(result, s) for s in result.ranking],
        "ratios": result.standing.ratios.tolist(),
        "times": result.standing.times.tolist(),
        "steps": result.standing.steps.tolist(),
        "test_times": result.standing.test_times.tolist(),
        "missing": np.isnan(result.standing.times).tolist(),
        "why_void": [[result.why_void(s, w) for w in range(result.num_base)] for s in range(len(result.submissions))],
        "pairs": _pairs(result),
        "curves": _curves(result),
        "tuning": _tuning(result),
        "phases": _phases(result, records),
        "differences": [
            {
                "submission": d.submission,
                "workload": d.workload,
                "official": d.official,
                "documented": d.documented,
                "why": d.why,
            }
            for d in result.differences
        ],
        "flags": [
            {
                "submission": name,
                "workload": workload,
                "flag": each.flag.name,
                "trials": each.trials,
                "reason": each.flag.reason,
            }
            for (name, workload), flags in result.flags.items()
            for each in flags
        ],
        "incomplete": [
            {"submission": name, "workload": workload, "why": "; ".join(why)}
            for (name, workload), why in result.incomplete.items()
        ],
        "problems": [
            {
                "path": _below(result.logs.roots, problem.path),
                "message": problem.message,
                "severity": problem.severity.name.lower(),
            }
            for problem in sorted(result.problems, key=lambda p: -p.severity)
        ],
        "damaged": sum(problem.severity is Severity.DAMAGED for problem in result.problems),
        "statuses": _statuses(result),
        "environments": _environments(result, records),
        "sources": _sources(result, records),
    }
    clean: dict[str, Any] = _clean(content)
    return clean


def _below(roots: Sequence[Path], path: str) -> str:
    """A path as it reads best: without the run directory if there is one, from its name on if there are several."""
    for root in roots:
        if Path(path).is_relative_to(root) and Path(path) != root:
            return str(Path(path).relative_to(root if len(roots) == 1 else root.parent))
    return path


def _clean(value: Any) -> Any:
    """No infinity, no NaN, no control characters."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list | tuple) else value


def _record(trial: Trial) -> dict[str, Any]:
    """`trial.json`, or the official meta data; empty where there is none that can be read (the problems tell)."""
    for name in ("trial.json", "meta_data_0.json"):
        try:
            return parse_object(read_bytes(trial.path / name))
        except LogError:  # absent, or reported as damaged when the logs were read
            continue
    return {}


def _workload(result: ScoreResult, w: int) -> dict[str, Any]:
    name = result.workloads[w]
    terms = result.version.terms(name)
    return {
        "name": name,
        "held_out": w >= result.num_base,
        "metric": terms.metric,
        "higher": terms.validation.higher_is_better,
        "target": terms.validation_target,
        "test_target": terms.test_target,
        "budget": result.version.budget_seconds(name, result.ruleset),
        "step_hint": terms.step_hint,
    }


def _board_row(result: ScoreResult, s: int) -> dict[str, Any]:
    standing, name = result.standing, result.submissions[s]
    trials = [trial for trial in result.logs.trials if trial.submission == name]
    flags = sum(each.trials for (who, _), flags in result.flags.items() if who == name for each in flags)
    row: dict[str, Any] = {
        "index": s,
        "rank": int(standing.ranks[s]),
        "name": name,
        "score": float(standing.scores[s]),
        "other_score": float(result.standings[next(r for r in Rule if r is not result.rule)].scores[s]),
        "solved": int(np.isfinite(standing.base_times[s]).sum()),
        "trials": len(trials),
        "flags": flags,
        "hardware": result.hardware(s),
        "speedup": None if result.speedups is None else float(result.speedups[s]),
        "studies": None,
        "both": None,
        "rank_shares": None,
    }
    if result.intervals is not None and result.bootstrap is not None:
        studies, both = result.intervals
        row["studies"], row["both"] = studies[s].tolist(), both[s].tolist()
        row["rank_shares"] = result.bootstrap.rank_shares()[s].tolist()
    return row


def _pairs(result: ScoreResult) -> list[dict[str, Any]]:
    """Comparisons of all pairs; none where there are too many."""
    number = len(result.submissions)
    if number * (number - 1) // 2 > MAX_PAIRS:
        return []
    seconds = result.standing.studies.seconds[:, : result.num_base]
    budgets = censoring_budgets(result.logs, result.version, result.ruleset, result.base_workloads)
    pairs = []
    for first, second in combinations(result.ranking, 2):
        try:
            found = compare_times(seconds[first], seconds[second], budgets, replicates=2000)
        except ValueError:  # no workload in common: nothing to say
            continue
        pairs.append(
            {
                "first": first,
                "second": second,
                "speedup": found.speedup,
                "low": found.low,
                "high": found.high,
                "studies": found.studies,
                "p": found.p_studies,
                "smallest": found.p_studies_smallest,
                "decided": found.decided,
            }
        )
    return pairs


def _curves(result: ScoreResult) -> list[dict[str, Any]]:
    """Every trial's evaluations, thinned: seconds, steps, and the target metric on three splits."""
    order = {name: index for index, name in enumerate(result.submissions)}
    place = {name: index for index, name in enumerate(result.workloads)}
    trials = [t for t in result.logs.trials if t.evaluations is not None and len(t.evaluations) and t.workload in place]
    keep = max(16, MAX_POINTS // max(len(trials), 1))
    curves = []
    for trial in trials:
        assert trial.evaluations is not None
        target = result.version.terms(trial.workload).validation
        validation = trial.evaluations.get(f"validation/{target.metric}")
        hit = first_hit(validation, target, strict=result.rule is Rule.DOCUMENTED)
        rows = _thin(len(validation), keep, hit)
        curves.append(
            {
                "submission": order[trial.submission],
                "workload": place[trial.workload],
                "study": trial.study,
                "trial": trial.number,
                "status": trial.record.status or "",
                "hit": None if hit is None else int(np.searchsorted(rows, hit)),
                "seconds": _short(trial.seconds[rows]),
                "steps": _short(trial.evaluations.get("global_step")[rows]),
                "validation": _short(validation[rows]),
                "train": _short(trial.evaluations.get(f"train/{target.metric}")[rows]),
                "test": _short(trial.evaluations.get(f"test/{target.metric}")[rows]),
            }
        )
    return curves


def _thin(length: int, keep: int, hit: int | None) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Row numbers to draw: evenly spread, with the first, the last and the first hit among them."""
    rows = np.linspace(0, length - 1, min(length, keep)).round().astype(np.intp)
    return np.unique(np.append(rows, hit if hit is not None else rows[:1]))


def _short(values: Floats) -> list[float] | None:
    """Five significant digits are more than a screen shows; None for a column without any number."""
    return None if np.isnan(values).all() else [float(f"{value:.5g}") for value in values.tolist()]


def _tuning(result: ScoreResult) -> list[dict[str, Any]]:
    """Trials with hyperparameters: their point, best value and time to target."""
    order = {name: index for index, name in enumerate(result.submissions)}
    place = {name: index for index, name in enumerate(result.workloads)}
    rows = []
    for trial in result.logs.trials:
        if not trial.has_hyperparameters or trial.evaluations is None or trial.workload not in place:
            continue
        try:
            point = parse_object(read_bytes(trial.path / "hparams.json"))
        except LogError as error:
            point = {"hparams.json": str(error)}
        target = result.version.terms(trial.workload).validation
        values = trial.evaluations.get(f"validation/{target.metric}")
        best = best_row(values, higher_is_better=target.higher_is_better) if len(values) else None
        hit = first_hit(values, target, strict=result.rule is Rule.DOCUMENTED)
        rows.append(
            {
                "submission": order[trial.submission],
                "workload": place[trial.workload],
                "study": trial.study,
                "trial": trial.number,
                "point": _flat(point),
                "best": None if best is None else float(values[best]),
                "seconds": None if hit is None else float(trial.seconds[hit]),
            }
        )
    return rows


def _flat(point: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, float | str]:
    """Nested hyperparameters as names and numbers or words; `betas` becomes `betas.0` and `betas.1`."""
    flat: dict[str, float | str] = {}
    for key, value in point.items():
        name = f"{prefix}{key}"
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict) and depth < 3:
            flat |= _flat(value, f"{name}.", depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[name] = float(value)
        else:
            flat[name] = str(value)[:60]
    return flat


def _phases(result: ScoreResult, records: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Median seconds that trials spent in each phase, by submission and workload; inside the clock are the first three."""
    groups: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for trial in result.logs.trials:
        times = _spent(trial, records[trial.path]) if trial.workload in result.workloads else None
        if times is not None:
            groups[trial.submission, trial.workload].append(times)
    rows = []
    for (submission, workload), group in sorted(groups.items()):
        medians = {phase: float(np.median([each[phase] for each in group])) for phase in PHASES}
        rows.append({"submission": submission, "workload": workload, "total": sum(medians.values()), **medians})
    return rows


def _spent(trial: Trial, record: Mapping[str, Any]) -> dict[str, float] | None:
    if trial.evaluations is None or not len(trial.evaluations):
        return None
    last = {
        name: float(np.nan_to_num(trial.evaluations.get(f"accumulated_{name}_time")[-1]))
        for name in ("eval", "logging")
    }
    outcome, validity = _table(record, "result"), _table(record, "validity")
    clock = _amount(outcome, "submission_seconds") or float(trial.seconds[-1])
    data = min(clock, _amount(outcome, "data_wait_seconds"))
    intervals = validity.get("intervals")
    compiling = (
        sum(_amount(each, "compile_seconds") for each in intervals if isinstance(each, dict))
        if isinstance(intervals, list)
        else 0.0
    )
    compiling = min(clock - data, compiling)
    return {
        "compute": clock - data - compiling,
        "data": data,
        "compile": compiling,
        "evaluation": _amount(record, "evaluation_seconds") or last["eval"],
        "logging": _amount(record, "logging_seconds") or last["logging"],
        "setup": sum(_amount(_table(record, "setup_seconds"), key) for key in _table(record, "setup_seconds")),
    }


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _amount(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return float(value) if good else 0.0  # type: ignore[arg-type]


def _statuses(result: ScoreResult) -> list[dict[str, Any]]:
    """How many trials of each submission ended in which way; our runs only."""
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for trial in result.logs.trials:
        if trial.record.status is not None:
            counts[trial.submission, trial.record.status + (" (void)" if trial.record.void else "")] += 1
    return [{"submission": who, "status": status, "trials": count} for (who, status), count in sorted(counts.items())]


_ENVIRONMENT = (
    ("os", "Operating system"), ("os_platform", "Operating system"), ("python", "Python"), ("python_version", "Python"),
    ("driver", "Driver"), ("gpu_driver", "Driver"), ("cuda", "CUDA"), ("cudnn", "cuDNN"), ("nccl", "NCCL"),
    ("cpu_model_name", "Processor"), ("cpu_count", "Processors"),
)  # fmt: skip


def _environments(result: ScoreResult, records: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The distinct machines and settings, each with the submissions that ran there."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for trial in result.logs.trials:
        record = records[trial.path]
        environment = _table(record, "environment") or record
        facts = {name.capitalize(): value for name, value in trial.record.conditions}
        facts |= {"Updates by": trial.record.kernels} if trial.record.kernels else {}
        facts |= {label: str(environment[key]) for key, label in _ENVIRONMENT if environment.get(key) is not None}
        packages = _table(environment, "packages")
        facts |= {name: str(packages[name]) for name in ("torch", "triton", "algoperf_torch") if packages.get(name)}
        precision = _table(environment, "precision").get("float32_matmul")
        facts |= {"Float32 products": str(precision)} if precision else {}
        threads = _table(environment, "threads").get("torch")
        facts |= {"Threads": str(threads)} if threads else {}
        commit = _table(environment, "git").get("commit") or record.get("git_commit_hash")
        facts |= {"Commit": str(commit)[:12]} if commit else {}
        if facts:
            groups[tuple(facts.items())][trial.submission] += 1
    return [{"facts": dict(facts), "submissions": dict(who)} for facts, who in groups.items()]


def _sources(result: ScoreResult, records: Mapping[Any, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The submitted source of each submission: digest, and links to the files where they lie."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for trial in result.logs.trials:
        told = _table(records[trial.path], "submission")
        digest = str(told.get("digest") or "")
        if not digest:
            continue
        paths = told.get("sources")
        found.setdefault(
            (trial.submission, digest),
            {
                "submission": trial.submission,
                "reference": str(told.get("reference") or ""),
                "digest": digest,
                "files": [str(path) for path in paths if str(path).startswith("/")] if isinstance(paths, list) else [],
            },
        )
    return list(found.values())


def groups_of(values: Iterable[Mapping[str, Any]], key: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Rows by the value of one of their entries, in order of appearance."""
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for value in values:
        groups[value[key]].append(value)
    return dict(groups)


def phase_rows(phases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bars of the phase chart: shares of the longest total of their workload, in percent."""
    rows = []
    for workload, group in groups_of(phases, "workload").items():
        longest = max(row["total"] for row in group) or 1.0
        rows += [
            {
                "submission": row["submission"],
                "workload": workload,
                "total": row["total"],
                "parts": [{"name": name, "seconds": row[name], "width": 100 * row[name] / longest} for name in PHASES],
            }
            for row in group
        ]
    return rows
