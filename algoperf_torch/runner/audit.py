"""`algoperf audit RUNS`: re-derives from the logs alone what can be re-derived, and says which trials cannot stand.

Reads the files of finished trials only; torch is not imported. A finding is `invalid` where a log contradicts itself, the
rules, or its own guards, and a `warning` where somebody should look.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import tyro

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.runner.record import read_json, read_rows
from algoperf_torch.runner.seeds import TrialSeeds, draw_trial_seed
from algoperf_torch.runner.status import Status
from algoperf_torch.spec import Ruleset, Target
from algoperf_torch.versions import DEFAULT_VERSION, BenchmarkVersion, recorded_version

SCHEMA = Path(__file__).with_name("trial.schema.json")
SLACK = 0.05  # seconds: clocks are read one after the other
TOLERANCE = 1e-6  # relative: numbers went through text
FAST_INTERVAL = 1 / 3  # of the median step time: an interval as fast as that is looked at
FEW_SAMPLES = 1 / 5  # of the other submissions' median number of samples to the target
LATE_FRACTION = 0.05  # of the evaluation period, by which an evaluation may come late

# Products of the matrix units per second, dense, in the fastest precision that trains: a floor, never reached.
PEAK_FLOPS = {"V100": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}

OFFICIAL_COLUMNS = (
    "accumulated_eval_time", "accumulated_logging_time", "accumulated_submission_time", "global_step",
    "preemption_count", "score", "total_duration", "validation/num_examples",
)  # fmt: skip


@dataclass(frozen=True)
class AuditOptions:
    """Re-checks finished runs from their logs: prints VALID, or why not."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, submissions, studies or single trials."""
    warnings: bool = True
    """Also print what does not void a trial but should be looked at."""


@dataclass(frozen=True)
class Finding:
    severity: Literal["invalid", "warning"]
    text: str


@dataclass
class Trial:
    """One trial directory as it was found."""

    directory: Path
    summary: dict[str, Any]
    evaluations: list[dict[str, str]] = field(default_factory=list)
    measurements: list[dict[str, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def invalid(self, text: str) -> None:
        self.findings.append(Finding("invalid", text))

    def warn(self, text: str) -> None:
        self.findings.append(Finding("warning", text))

    @property
    def is_valid(self) -> bool:
        return not any(finding.severity == "invalid" for finding in self.findings)

    def get(self, *keys: str, default: Any = None) -> Any:
        """An entry of `trial.json` by its path; `default` where a part is missing."""
        value: Any = self.summary
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value


def main(options: AuditOptions) -> int:
    """Prints the verdicts. 0 where every trial is valid, 1 where one is not."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    trials = audit(options.runs)
    for trial in trials:
        shown = [item for item in trial.findings if options.warnings or item.severity == "invalid"]
        verdict = "VALID" if trial.is_valid else "NOT VALID"
        console.print(f"{verdict:<10} {trial.directory}  ({trial.get('status', default='unreadable')})")
        for finding in shown:
            console.print(f"  {finding.severity}: {finding.text}")
    bad = sum(not trial.is_valid for trial in trials)
    console.print(f"\n{len(trials)} trials: " + ("VALID" if not bad else f"{bad} NOT VALID"))
    return 1 if bad else 0


def audit(runs: Iterable[Path]) -> list[Trial]:
    """All trials below the given directories, with what was found.

    Raises `UsageError` for a directory that does not exist or holds no trial.
    """
    runs = list(runs)
    references = [_reference(folder) for run in runs for folder in _references(run)]
    trials = [_read(directory) for run in runs for directory in _trial_directories(run)]
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    readable = []
    for trial in trials:
        errors = [] if trial.findings else sorted(schema.iter_errors(trial.summary), key=str)
        for error in errors[:3]:
            where = "/".join(map(str, error.absolute_path)) or "the top level"
            trial.invalid(f"trial.json does not follow its schema at {where}: {error.message[:120]}")
        if trial.is_valid:
            check_version(trial)
        if trial.is_valid:
            readable.append(trial)
            for check in CHECKS:
                check(trial)
    for comparison in COMPARISONS:
        comparison(readable)
    return trials + references


def _trial_directories(run: Path) -> list[Path]:
    if not run.is_dir():
        raise UsageError(f"No directory {run}. Give the directory of runs, for example: algoperf audit runs/")
    found = sorted(
        path
        for path in {path.parent for name in ("trial.json", "eval_measurements.csv") for path in run.rglob(name)}
        if path == run or not path.name.startswith("void_")  # what `algoperf tune` keeps of a trial that it ran again
    )
    imported = _references(run)
    if not found and not imported:
        raise UsageError(f"No trial below {run}: no file trial.json.")
    return [path for path in found if not any(folder in path.parents for folder in imported)]


def _references(run: Path) -> list[Path]:
    """Folders of published submissions that `algoperf import-logs` has copied."""
    return sorted(path.parent for path in run.rglob("imported.json"))


def _reference(folder: Path) -> Trial:
    """A published submission: nothing of it was run here, so it is only asked whether it is what was imported."""
    from algoperf_torch.interop.official_logs import digest_of, read_marker

    trial = Trial(folder, {})
    try:
        marker = read_marker(folder)
    except LogError as error:
        trial.invalid(str(error))
        return trial
    trial.summary["status"] = f"published results of {marker['version']}, {marker['hardware']}"
    if digest_of(folder) != marker["digest"]:
        trial.invalid(f"its files are not those that were imported from {marker['source']}")
    return trial


def _read(directory: Path) -> Trial:
    trial = Trial(directory, {})
    try:
        trial.summary = read_json(directory / "trial.json")
        for name, rows in (("eval_measurements", trial.evaluations), ("measurements", trial.measurements)):
            path = directory / f"{name}.csv"
            if path.exists():
                rows += read_rows(path)
    except (LogError, UnicodeDecodeError) as error:
        trial.invalid(str(error))
    return trial


# ---------------------------------------------------------------- one trial


def check_version(trial: Trial) -> None:
    """The benchmark version can be read and has the workload; without it nothing else can be checked."""
    try:
        _version(trial).terms(trial.get("workload"))
    except UsageError as error:
        trial.invalid(str(error))


def check_place(trial: Trial) -> None:
    """The directory says which trial it is; so does `trial.json`."""
    *_, study, workload, name = trial.directory.absolute().parts
    expected = (f"study_{trial.get('study')}", f"{trial.get('workload')}_pytorch", f"trial_{trial.get('trial')}")
    if (study, workload, name) != expected:
        trial.invalid(f"the directory is {study}/{workload}/{name}, trial.json says {'/'.join(expected)}")


def check_end(trial: Trial) -> None:
    status = trial.get("status")
    if status == Status.RUNNING:
        trial.invalid("the trial was never closed: it is still running, or its process was killed")
    elif trial.get("void"):
        trial.invalid(f"the trial is void ({status}) and is to be run again")


def check_guards(trial: Trial) -> None:
    section = trial.get("validity")
    if section is None:
        trial.invalid("trial.json has no section `validity`")
        return
    for flag in section["flags"]:
        text = f"{flag['name']} at step {flag['step']}: {flag['reason']}"
        trial.invalid(text) if flag["severity"] == "void" else trial.warn(text)
    if section["valid"] == any(flag["severity"] == "void" for flag in section["flags"]):
        trial.invalid(f"`valid` is {str(section['valid']).lower()}, which its flags contradict")
    if section.get("disabled_guards"):
        trial.invalid(f"guards were taken out: {', '.join(section['disabled_guards'])}")


def check_columns(trial: Trial) -> None:
    path = trial.directory / "eval_measurements.csv"
    if not trial.evaluations:
        if trial.get("result", "evaluations", default=0):
            trial.invalid(f"{path.name} has no row, trial.json counts {trial.get('result', 'evaluations')} evaluations")
        return
    header = path.read_text(encoding="utf-8").partition("\n")[0].split(",")
    if header != sorted(header):
        trial.invalid(f"{path.name}: the columns are not sorted")
    metric = f"validation/{_version(trial).terms(trial.get('workload')).metric}"
    missing = [name for name in (*OFFICIAL_COLUMNS, metric) if name not in header]
    if missing:
        trial.invalid(f"{path.name}: missing columns {', '.join(missing)}")
    for number, row in enumerate(trial.evaluations, start=1):
        for name, text in row.items():
            if math.isnan(_value(row, name)) and text.lower() != "nan":
                trial.invalid(f"{path.name}, row {number}: {name} is {text!r}, not a number")
        if "score" in row and row["score"] != row.get("accumulated_submission_time"):
            trial.invalid(f"{path.name}, row {number}: score differs from accumulated_submission_time")
    again = [_value(row, "global_step") for row in trial.measurements if "total_duration" in row]
    if again != [_value(row, "global_step") for row in trial.evaluations]:
        trial.invalid("measurements.csv and eval_measurements.csv hold different evaluations")


def check_order(trial: Trial) -> None:
    """Steps grow; clocks never run backwards; the first step is evaluated."""
    steps = _column(trial, "global_step")
    if steps and steps[0] != 1 and trial.get("result", "steps", default=0) >= 1:
        trial.invalid(f"the first evaluation is at step {steps[0]:g}; it belongs to step 1")
    for name, strictly in (
        ("global_step", True),
        ("accumulated_submission_time", True),
        ("accumulated_eval_time", False),
        ("accumulated_logging_time", False),
        ("preemption_count", False),
    ):
        values = _column(trial, name)
        for step, before, after in zip(steps[1:], values, values[1:], strict=False):
            if after < before or (strictly and after == before):
                trial.invalid(f"{name} goes from {before:g} to {after:g} at step {step:g}")
                break


def check_sum_of_parts(trial: Trial) -> None:
    """Submission, evaluation and logging time together fit into the time that passed."""
    if trial.get("clock") != "real":
        return
    for row in trial.evaluations:
        if _value(row, "preemption_count") == 0:  # total_duration starts afresh in a resumed process
            parts = sum(_value(row, f"accumulated_{name}_time") for name in ("submission", "eval", "logging"))
            if parts > _value(row, "total_duration") * (1 + TOLERANCE) + SLACK:
                trial.invalid(
                    f"step {row['global_step']}: the parts add up to {parts:.2f} s, but {row['total_duration']} s passed"
                )
                break
    started, ended = trial.get("started"), trial.get("ended")
    seconds = trial.get("result", "submission_seconds", default=0.0)
    if ended is not None and not trial.get("preemption_count") and seconds > ended - started + SLACK:
        trial.invalid(f"{seconds:.2f} s were charged in a process that lived for {ended - started:.2f} s")
    if ended is not None and trial.evaluations and not trial.get("preemption_count"):
        last = _value(trial.evaluations[-1], "total_duration")
        if last > ended - started + SLACK:
            trial.invalid(f"the log spans {last:.2f} s, the process lived for {ended - started:.2f} s")


def check_intervals(trial: Trial) -> None:
    """The guards' own books agree with the log, and nothing in them is faster than it can be."""
    rows = trial.get("validity", "intervals", default=[])
    if not rows:
        return
    total, charged = math.fsum(row["submission_seconds"] for row in rows), rows[-1]["step"]
    scores = dict(zip(_column(trial, "global_step"), _column(trial, "accumulated_submission_time"), strict=False))
    if charged in scores and abs(scores[charged] - total) > SLACK + TOLERANCE * total:
        trial.invalid(f"the guards saw {total:.3f} s up to step {charged}, the log says {scores[charged]:.3f} s")
    for row in rows:
        lived = row.get("independent_seconds")
        if lived is not None and row["submission_seconds"] < lived * 0.995 - SLACK:
            trial.invalid(
                f"step {row['step']}: {row['submission_seconds']:.3f} s were charged while {lived:.3f} s went by"
            )
    means = [row["mean_step_seconds"] for row in rows if row["steps"] > 1]
    if len(means) > 2:
        median = statistics.median(means)
        for row in rows:
            if row["steps"] > 1 and row["mean_step_seconds"] < FAST_INTERVAL * median:
                trial.warn(
                    f"steps up to {row['step']} took {row['mean_step_seconds']:.3g} s each, the median is {median:.3g} s"
                )
                break


def check_arithmetic_floor(trial: Trial) -> None:
    """A weight that is used once for every example costs six operations an example, forwards and backwards."""
    weights = trial.get("validity", "weights_in_products")
    samples, seconds = trial.get("validity", "samples_per_step"), trial.get("validity", "mean_step_seconds")
    gpus = trial.get("environment", "gpus", default=[])
    peaks = [peak for gpu in gpus[:1] for name, peak in PEAK_FLOPS.items() if name in gpu["name"]]
    if not (weights and samples and seconds and peaks):
        return
    floor = 6 * weights * samples / (peaks[0] * trial.get("process", "world_size"))
    if seconds < floor:
        trial.warn(f"a step took {seconds:.3g} s; its arithmetic alone takes {floor:.3g} s on {gpus[0]['name']}")


def check_budget(trial: Trial) -> None:
    version, options, recorded = _version(trial), trial.get("options"), trial.get("budget")
    workload, ruleset = trial.get("workload"), Ruleset(trial.get("ruleset"))
    budget = math.inf if recorded["seconds"] is None else recorded["seconds"]
    changed = options.get("budget") is not None
    if recorded["changed"] != changed:
        trial.invalid(
            f"trial.json says the budget was {'' if not changed else 'not '}changed; --budget is {options.get('budget')}"
        )
    if not changed:
        limits = [version.step_limit(workload, ruleset), options.get("max_steps")]
        steps = min((limit for limit in limits if limit is not None), default=None)
        seconds = version.budget_seconds(workload, ruleset)
        if (budget, recorded["steps"]) != (seconds, steps):
            trial.invalid(
                f"the budget was {_budget_text(budget, recorded['steps'])}; the version's is {_budget_text(seconds, steps)}"
            )
    if recorded["steps"] is not None and trial.get("result", "steps", default=0) > recorded["steps"]:
        trial.invalid(f"{trial.get('result', 'steps')} steps were taken; the budget ends after {recorded['steps']}")
    late = [row for row in trial.evaluations if _value(row, "score") >= budget]
    allowed = 1 if version.protocol.late_evaluation else 0
    if len(late) > allowed:
        trial.invalid(f"{len(late)} evaluations at or after the budget of {budget:g} s; the version allows {allowed}")
    period = options.get("eval_period") or version.terms(workload).eval_period_seconds
    lateness = trial.get("result", "largest_evaluation_lateness_seconds", default=0.0)
    step = max((row["mean_step_seconds"] or 0.0 for row in trial.get("validity", "intervals", default=[])), default=0.0)
    if lateness > max(LATE_FRACTION * period, 2 * step):
        trial.warn(f"an evaluation came {lateness:.2f} s late; the period is {period:g} s")


def _budget_text(seconds: float, steps: int | None) -> str:
    return f"{seconds:g} s" + (f" and {steps} steps" if steps is not None else "")


def check_targets(trial: Trial) -> None:
    """What the status claims follows from the rows."""
    terms = _version(trial).terms(trial.get("workload"))
    status, result = trial.get("status"), trial.get("result")
    for split, target in (("validation", terms.validation), ("test", terms.test)):
        hit = None if target is None else _first_hit(trial, split, target)
        if result is None or target is None:
            continue
        claimed = (result[f"{split}_step"], result[f"{split}_seconds"])
        if (hit is None) != (claimed[0] is None) or (hit is not None and not _same(hit, claimed)):
            trial.invalid(f"{split} target: trial.json says {_hit_text(claimed)}, the rows say {_hit_text(hit)}")
        if split == "validation" and (status == Status.REACHED) != (hit is not None) and status in _OWN_ENDS:
            trial.invalid(f"status {status}, but the validation target was {'' if hit else 'not '}reached")
    if result is not None and trial.evaluations and result["evaluations"] != len(trial.evaluations):
        trial.invalid(f"trial.json counts {result['evaluations']} evaluations, the log has {len(trial.evaluations)}")
    not_finite = [row for row in trial.evaluations if not math.isfinite(_value(row, f"validation/{terms.metric}"))]
    if not_finite and status != Status.DIVERGED:
        trial.warn(f"step {not_finite[0]['global_step']}: the target metric is not a number")


_OWN_ENDS = (Status.REACHED, Status.BUDGET_EXHAUSTED)


def _first_hit(trial: Trial, split: str, target: Target) -> tuple[float, float] | None:
    for row in trial.evaluations:
        if target.reached(_value(row, f"{split}/{target.metric}")):
            return _value(row, "global_step"), _value(row, "score")
    return None


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(one, other, strict=True))


def _hit_text(hit: Sequence[float] | None) -> str:
    return "not reached" if hit is None or hit[0] is None else f"step {hit[0]:g} after {hit[1]:.3f} s"


def check_seeds(trial: Trial) -> None:
    """The trial's seed follows from the run's, the four seeds from the trial's."""
    seeds = trial.get("seeds")
    expected = draw_trial_seed(
        seeds["run"], workload=trial.get("workload"), study=trial.get("study"), trial=trial.get("trial")
    )
    if seeds["trial"] != expected:
        trial.invalid(f"the trial seed is {seeds['trial']}; run seed {seeds['run']} gives {expected}")
    derived = TrialSeeds.derive(seeds["trial"], Ruleset(trial.get("ruleset")))._asdict()
    wrong = [name for name, pair in derived.items() if list(pair) != seeds[name]]
    if wrong:
        trial.invalid(f"seeds that do not follow from the trial seed: {', '.join(wrong)}")


def check_files(trial: Trial) -> None:
    """Hyperparameters and meta data say what `trial.json` says."""
    path = trial.directory / "hparams.json"
    try:
        if trial.get("ruleset") == Ruleset.EXTERNAL and read_json(path) != trial.get("hyperparameters"):
            trial.invalid("hparams.json differs from the hyperparameters in trial.json")
        meta = read_json(trial.directory / "meta_data_0.json")
        if meta.get("rng_seed") != trial.get("seeds", "trial"):
            trial.invalid(
                f"meta_data_0.json: rng_seed is {meta.get('rng_seed')}, trial.json says {trial.get('seeds', 'trial')}"
            )
    except LogError as error:
        trial.invalid(str(error))


def check_source(trial: Trial) -> None:
    """The submitted files still are what ran, where they can be found."""
    paths = [Path(text) for text in trial.get("submission", "sources")]
    if not paths or not all(path.is_file() for path in paths):
        return
    digest = hashlib.sha256(trial.get("submission", "reference").encode())
    for path in paths:
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    if digest.hexdigest() != trial.get("submission", "digest"):
        trial.warn("the submission's source has changed since the run")


def check_official(trial: Trial) -> None:
    """An official version names its machine and its conditions."""
    version = _version(trial)
    if not version.official:
        return
    failed = [check["name"] for check in trial.get("hardware_check") if check["required"] and not check["ok"]]
    if failed:
        trial.invalid(f"the machine is not the one of version {version.name}: {', '.join(failed)}")
    if not trial.get("supervised"):
        trial.invalid(f"version {version.name} is official and the trial ran without a supervisor (`algoperf tune`)")


def check_conditions(trial: Trial) -> None:
    """Every version but `local` fixes how a trial is run."""
    version = _version(trial)
    if version.name == DEFAULT_VERSION:
        return
    if trial.get("clock") != "real":
        trial.invalid(f"the clock was {trial.get('clock')!r}")
    if trial.get("compile_policy") != version.protocol.compile_policy:
        trial.invalid(
            f"compile policy {trial.get('compile_policy')}; the version has {version.protocol.compile_policy}"
        )
    fixed = {"budget": None, "eval_period": None, "model_scale": version.model_scale, "max_steps": None}
    for name, value in fixed.items():
        if trial.get("options", name, default=value) != value:
            trial.invalid(f"--{name.replace('_', '-')} {trial.get('options', name)} changes the rules")


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_place, check_end, check_guards, check_columns, check_order, check_sum_of_parts, check_intervals,
    check_arithmetic_floor, check_budget, check_targets, check_seeds, check_files, check_source, check_official,
    check_conditions,
)  # fmt: skip

# ---------------------------------------------------------------- trials against each other


def compare_seeds(trials: Sequence[Trial]) -> None:
    for _, group in _groups(trials, lambda t: (t.get("submission", "name"), t.get("workload"))):
        seen: dict[Any, Trial] = {}
        for trial in group:
            first = seen.setdefault(trial.get("seeds", "trial"), trial)
            if first is not trial:
                trial.invalid(f"the same seed as {first.directory}")


def compare_sources(trials: Sequence[Trial]) -> None:
    """All trials of a submission ran the same source."""
    for (name,), group in _groups(trials, lambda t: (t.get("submission", "name"),)):
        digests = {trial.get("submission", "digest") for trial in group}
        if len(digests) > 1:
            for trial in group:
                trial.invalid(f"the trials of {name} ran {len(digests)} different sources")


def compare_machines(trials: Sequence[Trial]) -> None:
    """Trials that are ranked together ran on equal machines under equal policies."""

    def machine(trial: Trial) -> dict[str, Any]:
        environment = trial.get("environment", default={})
        return {
            "device": [gpu["name"] for gpu in environment.get("gpus", [])] or environment.get("cpu", {}).get("model"),
            "processors": environment.get("cpu", {}).get("count"),
            "driver": environment.get("driver"),
            "torch": environment.get("packages", {}).get("torch"),
            "precision": environment.get("precision"),
            "ranks": trial.get("process", "world_size"),
            "threads": environment.get("threads", {}).get("torch"),
            "clock": trial.get("clock"),
            "compile policy": trial.get("compile_policy"),
            "choice of kernels": trial.get("kernels", "choice"),
        }

    for _, group in _groups(trials, lambda t: (t.get("version"), t.get("ruleset"), t.get("workload"))):
        first = machine(group[0])
        for trial in group[1:]:
            different = [key for key, value in machine(trial).items() if value != first[key]]
            if different:
                trial.warn(f"not comparable with {group[0].directory}: other {', '.join(different)}")


def compare_samples(trials: Sequence[Trial]) -> None:
    """A submission that needs far fewer samples than all others is looked at."""
    for _, group in _groups(trials, lambda t: (t.get("version"), t.get("workload"))):
        needed = {id(trial): samples for trial in group if (samples := _samples_to_target(trial)) is not None}
        for trial in group:
            name = trial.get("submission", "name")
            others = [needed[id(t)] for t in group if id(t) in needed and t.get("submission", "name") != name]
            if id(trial) in needed and others and needed[id(trial)] < FEW_SAMPLES * statistics.median(others):
                trial.warn(
                    f"the target was reached after {needed[id(trial)]:.3g} samples; "
                    f"other submissions needed {statistics.median(others):.3g}"
                )


def _samples_to_target(trial: Trial) -> float | None:
    step = trial.get("result", "validation_step")
    return None if step is None else step * trial.get("validity", "samples_per_step", default=math.nan)


COMPARISONS: tuple[Callable[[Sequence[Trial]], None], ...] = (
    compare_seeds,
    compare_sources,
    compare_machines,
    compare_samples,
)


def _groups(
    trials: Sequence[Trial], key: Callable[[Trial], tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], list[Trial]]]:
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(key(trial), []).append(trial)
    yield from groups.items()


# ---------------------------------------------------------------- helpers


def _version(trial: Trial) -> BenchmarkVersion:
    return recorded_version(trial.summary)


def _value(row: Mapping[str, str], name: str) -> float:
    """A cell as a number; NaN where it is missing or no number (`check_columns` says so)."""
    try:
        return float(row.get(name, "nan"))
    except ValueError:
        return math.nan


def _column(trial: Trial, name: str) -> list[float]:
    return [_value(row, name) for row in trial.evaluations]
