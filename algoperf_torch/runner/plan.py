"""From (version, ruleset, submission) to the list of trials: what is there, what is missing, what it will cost."""

from __future__ import annotations

import enum
import json
import math
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich import box
from rich.table import Table

from algoperf_torch.errors import SubmissionLoadError, UnknownNameError, UsageError
from algoperf_torch.runner.launch.local import to_arguments
from algoperf_torch.runner.options import Budget, RunOptions, TrialOptions, budget_of
from algoperf_torch.runner.record import read_json, read_rows, trial_directory
from algoperf_torch.runner.seeds import draw_run_seed
from algoperf_torch.runner.status import Status
from algoperf_torch.runner.supervise import is_locked
from algoperf_torch.spec import Ruleset
from algoperf_torch.versions import BenchmarkVersion, load_version
from algoperf_torch.workloads.registry import WORKLOADS


@dataclass(frozen=True, kw_only=True)
class TuneOptions(TrialOptions):
    """Runs all missing trials of a submission, one after the other or one per device, and watches them.

    May be stopped or killed at any time; the same command goes on.
    """

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """Which workloads; default: all that the version lists (version local lists none)."""
    studies: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = ()
    """Which studies, from 0; default: all of the version."""
    trials: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...")] = ()
    """Which trials of each study, from 1; default: one for each point."""
    ranks: int | None = None
    """Data-parallel processes of one trial; default: the version's number of devices, or 1."""
    jobs: int | None = None
    """Trials that run at the same time; default: the visible devices divided by the ranks, at least 1."""
    retries: int = 3
    """How often a trial that was killed from outside is taken up again."""
    launcher: Literal["local", "slurm"] = "local"
    """`local` runs the trials here; `slurm` submits them as job arrays, one task for each trial, --jobs at a time."""
    slurm: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """What sbatch is to be told: partition=gpu account=me time=4:00:00 cpus-per-task=8 gpus-per-node=1 ..."""
    wait: bool = False
    """With --launcher slurm: stay until the submitted trials have left the queue, and tell how they ended."""
    hang_timeout: float = 1800.0
    """Seconds without a step, a change of phase, or progress of an evaluation, after which a trial is killed."""
    probe_steps: int = 20
    """Steps of the short run that measures what a workload costs here, if no trial of it has; 0: no estimate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("ranks", 1), ("jobs", 1), ("retries", 0), ("probe_steps", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
        if self.launcher == "local" and (self.slurm or self.wait):
            raise UsageError("--slurm and --wait go with --launcher slurm.")
        if not 0 < self.hang_timeout < math.inf:
            raise UsageError(f"--hang-timeout {self.hang_timeout}: must be a positive number of seconds.")
        for name, least in (("studies", 0), ("trials", 1)):
            if any(number < least for number in getattr(self, name)):
                raise UsageError(f"--{name}: {name} are numbered from {least}.")

    def run_options(self, workload: str, study: int, trial: int, **others: Any) -> RunOptions:
        """The options of one supervised trial."""
        shared = {item.name: getattr(self, item.name) for item in fields(TrialOptions)}
        return RunOptions(**{**shared, "supervised": True, **others}, workload=workload, study=study, trial=trial)


@dataclass(frozen=True, kw_only=True)
class SubmissionFacts:
    """What the plan knows of a submission."""

    name: str
    digest: str
    points: Mapping[int, Sequence[Mapping[str, Any]]]  # of each study, one for each trial


class State(enum.StrEnum):
    """What a trial's directory holds."""

    DONE = "done"  # a result: a hit or a miss
    MISSING = "missing"
    RESUMABLE = "to resume"  # stopped, with a checkpoint
    VOID = "void"  # to be run again
    RUNNING = "running"  # in another process
    QUEUED = "in the queue"  # of SLURM: pending or running


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    options: RunOptions
    directory: Path
    point: Mapping[str, Any]
    state: State
    status: Status | None  # of what the directory holds

    @property
    def label(self) -> str:
        return f"{self.options.workload}, study {self.options.study}, trial {self.options.trial}"

    @property
    def is_to_run(self) -> bool:
        return self.state not in (State.DONE, State.QUEUED)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a workload costs on this machine, in seconds, as a trial has shown."""

    setup: float  # from the start of the process to the start of the clock
    first_step: float  # with the compilation that is charged
    step: float
    first_evaluation: float
    evaluation: float

    def trial(self, budget: Budget, eval_period: float, *, steps: int | None = None) -> float:
        """Wall seconds of a trial that uses up its budget, or takes `steps` if that ends it earlier."""
        limits = [limit for limit in (steps, budget.steps) if limit is not None]
        training = min([budget.seconds, *(self.first_step + (limit - 1) * self.step for limit in limits)])
        evaluations = math.floor(training / max(eval_period, self.step)) + (1 if limits else 0)
        return self.setup + training + self.first_evaluation + evaluations * self.evaluation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All trials of a benchmark of one submission."""

    version: BenchmarkVersion
    ruleset: Ruleset
    submission: SubmissionFacts
    run_seed: int
    ranks: int
    trials: tuple[PlannedTrial, ...]  # study by study: what is there when it is interrupted is complete in itself
    costs: Mapping[str, Cost] = field(default_factory=dict)  # by workload; those that are not known are absent

    @property
    def to_run(self) -> tuple[PlannedTrial, ...]:
        return tuple(trial for trial in self.trials if trial.is_to_run)

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(trial.options.workload for trial in self.trials))

    def of(self, workload: str) -> list[PlannedTrial]:
        return [trial for trial in self.trials if trial.options.workload == workload]

    def eval_period(self, workload: str) -> float:
        chosen = self.trials[0].options.eval_period
        return self.version.terms(workload).eval_period_seconds if chosen is None else chosen

    def seconds(self, workload: str, *, steps: int | None = None) -> float | None:
        """At most so long takes one trial; with `steps`, if it ends after so many. None where the cost is unknown."""
        if workload not in self.costs:
            return None
        budget = budget_of(self.of(workload)[0].options, self.version)
        return self.costs[workload].trial(budget, self.eval_period(workload), steps=steps)

    def total_seconds(self, *, at_hint: bool = False) -> float | None:
        """Of all trials that are still to be run, one after the other."""
        total = 0.0
        for trial in self.to_run:
            workload = trial.options.workload
            seconds = self.seconds(workload, steps=self.version.terms(workload).step_hint if at_hint else None)
            if seconds is None:
                return None
            total += seconds
        return total


# -------------------------------------------------------------------------------------------------------- making a plan


def make_plan(options: TuneOptions, facts: SubmissionFacts) -> Plan:
    """Expands the options and looks at what their directories hold; starts nothing.

    Raises `UsageError` for names and numbers that do not exist, and where the directories hold something else: trials of
    other code, other points, another version, or another run seed.
    """
    version = load_version(options.version)
    workloads = chosen_workloads(options, version)
    existing = {path.parent: read_json(path) for path in _summaries(options.out / facts.name)}
    run_seed = _run_seed(options, existing, options.out / facts.name)
    planned = []
    for study in chosen_studies(options, version):
        points = facts.points[study]
        unknown = [number for number in options.trials if number > len(points)]
        if unknown:
            raise UsageError(f"--trials {unknown[0]}: a study has only {len(points)} trials.")
        for workload in workloads:
            for trial in options.trials or range(1, len(points) + 1):
                run = options.run_options(workload, study, trial, name=facts.name, seed=run_seed)
                directory = trial_directory(options.out, facts.name, study, workload, trial)
                summary = existing.get(directory)
                point = points[trial - 1]
                if summary is not None:
                    _check_same(summary, directory, version, options.ruleset, facts, point)
                state, status = inspect(directory, summary)
                planned.append(PlannedTrial(options=run, directory=directory, point=point, state=state, status=status))
    ranks = options.ranks or (version.hardware.num_devices or 1 if version.official else 1)
    costs = {}
    for workload in workloads:
        for directory, summary in existing.items():
            process = summary["process"]
            same = process["world_size"] == ranks and process["host"] == socket.gethostname()
            if summary["workload"] == workload and same and (cost := cost_of(directory)) is not None:
                costs[workload] = cost
                break
    return Plan(
        version=version,
        ruleset=options.ruleset,
        submission=facts,
        run_seed=run_seed,
        ranks=ranks,
        trials=tuple(planned),
        costs=costs,
    )


def chosen_workloads(options: TuneOptions, version: BenchmarkVersion) -> list[str]:
    if not options.workloads and version.score_over == "present":
        raise UsageError(f"Version {version.name} ranks any workloads. Name some, as in --workloads digits mnist.")
    chosen = options.workloads or (*version.base_workloads, *version.held_out_workloads)
    for name in chosen:
        version.terms(name)
        if name not in WORKLOADS:
            raise UnknownNameError("workload", name, WORKLOADS)
    return list(dict.fromkeys(chosen))


def chosen_studies(options: TuneOptions, version: BenchmarkVersion) -> list[int]:
    return sorted(set(options.studies)) or list(range(version.tuning.studies))


def facts_of(options: TuneOptions) -> SubmissionFacts:
    """Loads the submission in a process of its own and asks for its facts.

    Raises what went wrong there as `UsageError`, or `SubmissionLoadError` where the process did not survive it or hung.
    """
    version = load_version(options.version)
    workload = chosen_workloads(options, version)[0]
    arguments = to_arguments(options.run_options(workload, 0, 1))
    studies = ",".join(map(str, chosen_studies(options, version)))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "facts.json"
        command = [sys.executable, "-m", "algoperf_torch.runner.describe", str(output), studies, *arguments]
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=options.hang_timeout
            )
        except subprocess.TimeoutExpired as error:
            raise SubmissionLoadError(f"Loading {options.submission} took over {options.hang_timeout:g} s.") from error
        if not output.exists():
            told = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise SubmissionLoadError(
                f"Loading {options.submission} ended the process with exit status {process.returncode}: {told}"
            )
        found = json.loads(output.read_text(encoding="utf-8"))
    if "error" in found:
        raise UsageError(found["error"])
    points = {int(study): listed for study, listed in found["points"].items()}
    return SubmissionFacts(name=found["name"], digest=found["digest"], points=points)


def inspect(directory: Path, summary: Mapping[str, Any] | None) -> tuple[State, Status | None]:
    """What a trial's directory holds; `summary` is its `trial.json`."""
    status = None if summary is None else Status(summary["status"])
    if is_locked(directory):
        return State.RUNNING, status
    if summary is None:
        return State.MISSING, None
    if status in (Status.RUNNING, Status.PREEMPTED):
        return (State.RESUMABLE if any(directory.glob("checkpoint_*.pt")) else State.VOID), status
    return (State.VOID if summary["void"] else State.DONE), status


def make_room(directory: Path, *, keeps_state: bool) -> bool:
    """Prepares a trial's directory for another attempt; whether that goes on from a checkpoint.

    What a void attempt has left is kept beside it, as `void_<n>_trial_<i>` (which no reader of logs takes for a trial),
    so that every attempt can be looked at; its checkpoints are deleted.
    """
    summary = read_json(directory / "trial.json") if (directory / "trial.json").exists() else None
    state, _ = inspect(directory, summary)
    if state is State.RESUMABLE and keeps_state:
        return True
    if summary is not None:
        number = 1
        while (aside := directory.with_name(f"void_{number}_{directory.name}")).exists():
            number += 1
        directory.rename(aside)
        for path in aside.glob("checkpoint_*.pt"):
            path.unlink()
    return False


def cost_of(directory: Path) -> Cost | None:
    """What a finished or unfinished trial tells of its workload's cost; None if that is too little."""
    summary, table = read_json(directory / "trial.json"), directory / "eval_measurements.csv"
    rows = read_rows(table) if table.exists() else []
    if summary.get("clock") != "real" or "setup_seconds" not in summary or len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]

    def between(column: str) -> float:
        return float(last[column]) - float(first[column])

    return Cost(
        setup=summary["started"] - summary["process"]["started"] + sum(summary["setup_seconds"].values()),
        first_step=float(first["accumulated_submission_time"]),
        step=between("accumulated_submission_time") / between("global_step"),
        first_evaluation=float(first["accumulated_eval_time"]),
        evaluation=between("accumulated_eval_time") / (len(rows) - 1),
    )


def _summaries(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("study_*/*_pytorch/trial_*/trial.json")))


def _run_seed(options: TuneOptions, existing: Mapping[Path, Mapping[str, Any]], folder: Path) -> int:
    """One run seed for all trials of the submission: the given one, or that of the trials that exist, or a new one."""
    seeds = sorted({summary["seeds"]["run"] for summary in existing.values()})
    wanted = options.seed if options.seed is not None else seeds[0] if seeds else draw_run_seed()
    if any(seed != wanted for seed in seeds):
        raise UsageError(
            f"{folder} holds trials of run seed {', '.join(map(str, seeds))}, not {wanted}. Trials of one benchmark share "
            "it: choose another --name or --out, or leave out --seed."
        )
    return wanted


def _check_same(
    summary: Mapping[str, Any],
    directory: Path,
    version: BenchmarkVersion,
    ruleset: Ruleset,
    facts: SubmissionFacts,
    point: Mapping[str, Any],
) -> None:
    """Raises `UsageError` where a trial that exists is not one of this benchmark."""
    for what, found, wanted in (
        ("version", summary["version"], version.name),
        ("ruleset", summary["ruleset"], ruleset.value),
        ("submitted code", summary["submission"]["digest"], facts.digest),
        ("hyperparameters", summary["hyperparameters"], json.loads(json.dumps(dict(point)))),
    ):
        if found != wanted:
            shown = "" if what == "submitted code" else f" ({found}, now {wanted})"
            raise UsageError(f"{directory} was run with other {what}{shown}. Choose another --name or --out.")


# -------------------------------------------------------------------------------------------------------- showing a plan


def duration(seconds: float | None) -> str:
    """`3 h 12 min`, `4 min 05 s`, `1.3 s`; a question mark for what is unknown."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


def plan_table(plan: Plan) -> Table:
    """A row for each workload."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("workload", "target", "budget", "to run", "a step", "an evaluation", "a trial, at most"):
        table.add_column(name, justify="left" if name in ("workload", "target") else "right", no_wrap=True)
    for workload in plan.workloads:
        trials = plan.of(workload)
        target = plan.version.terms(workload).validation
        budget = budget_of(trials[0].options, plan.version)
        cost, most = plan.costs.get(workload), plan.seconds(workload)
        to_run = sum(trial.is_to_run for trial in trials)
        limits = [f"{budget.seconds:g} s"] if math.isfinite(budget.seconds) else []
        limits += [f"{budget.steps} steps"] if budget.steps is not None else []
        table.add_row(
            workload,
            f"{target.metric} {'>' if target.higher_is_better else '<'} {target.value:g}",
            ", ".join(limits),
            f"{to_run} of {len(trials)}",
            "?" if cost is None else f"{cost.step * 1e3:.3g} ms",
            duration(None if cost is None else cost.evaluation),
            duration(most),
        )
    return table


def plan_lines(plan: Plan, jobs: int) -> list[str]:
    """What the table does not say: counts, seed, the total."""
    states = {state: sum(trial.state is state for trial in plan.trials) for state in State}
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    ranks = f"{plan.ranks} rank{'s' if plan.ranks > 1 else ''} each"
    at_once = f", {jobs} at a time" if jobs > 1 else ", one after the other"
    lines = [
        f"{plan.submission.name}, version {plan.version.name}, {plan.ruleset} ruleset, run seed {plan.run_seed}",
        f"{len(plan.trials)} trial{'s' if len(plan.trials) > 1 else ''} ({counts}), {ranks}{at_once}",
    ]
    if not plan.to_run:
        return lines
    total, at_hint = plan.total_seconds(), plan.total_seconds(at_hint=True)
    budgets = sum(budget_of(trial.options, plan.version).seconds for trial in plan.to_run)
    if total is not None and at_hint is not None:
        lines.append(
            f"to run: at most {duration(total / jobs)} on this machine; {duration(at_hint / jobs)} if every trial takes its "
            "step hint; less where targets are reached"
        )
    elif math.isfinite(budgets):
        lines.append(f"to run: budgets of {duration(budgets / jobs)}, set-up and evaluations not counted")
    return lines
