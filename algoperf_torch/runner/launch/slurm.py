"""`algoperf tune --launcher slurm`: missing trials as job arrays, one task for each trial, submitted through submitit.

Every array has a key of its own: the name of its jobs is `algoperf-<key>`, and `<out>/<submission>/.slurm/<key>` holds the
list of its trials, written before sbatch is called, and what the tasks print. So `tune` may be killed at any moment: the
queue knows the names, the lists know the trials, and no trial is submitted that is pending or running. A task runs the
same supervised trial as the local launcher. Asked to stop (preemption, time limit), the trial saves its state and the job
is queued again. Imports no torch; submitit only where something is submitted.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from rich.console import Console

from algoperf_torch.errors import Preempted, UsageError
from algoperf_torch.runner.options import budget_of
from algoperf_torch.runner.plan import Plan, PlannedTrial, State, TuneOptions, duration, inspect, make_room
from algoperf_torch.runner.record import read_json, write_json
from algoperf_torch.runner.status import Status
from algoperf_torch.runner.supervise import (
    POLL_SECONDS,
    STOP_SECONDS,
    Watched,
    adopt_orphans,
    begin_attempt,
    close,
    compiler_caches,
    is_locked,
    output_file,
)

FOLDER = ".slurm"  # in the submission's folder; readers of logs leave hidden folders out
WARNING_SECONDS = round(STOP_SECONDS) + 30  # between the warning and the end of the time limit
_PREFIX = "algoperf-"
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)  # submitit asks for SIGUSR2 before the time limit; clusters use SIGUSR1
_OURS = {"array", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal"}


@dataclass(frozen=True)
class Job:
    """A task of an array as the queue shows it."""

    id: str  # 12_0, or 12 for a job that is no array
    state: str  # PENDING, RUNNING, ...
    reason: str
    host: str


# ---------------------------------------------------------------------------------------------------------- the queue


def has_slurm() -> bool:
    return shutil.which("squeue") is not None


def queued(submission: Path) -> dict[Path, Job]:
    """The jobs that are pending or running, by the directory of their trial; {} where none was ever submitted.

    Args:
        submission: folder of all trials of a submission.

    Raises `UsageError` where the queue does not answer: nobody can tell then.
    """
    arrays = _arrays(submission)
    if not arrays:
        return {}
    names = ",".join(_PREFIX + key for key in arrays)  # of any user: a directory may be shared
    listed = _ask("squeue", "--noheader", "--array", f"--name={names}", "--format=%F|%K|%T|%r|%N|%j")
    found = {}
    for line in listed.splitlines():
        number, index, state, reason, host, name = line.strip().split("|", 5)
        trials = arrays[name.removeprefix(_PREFIX)]
        place = int(index) if index.isdigit() else 0
        found[trials[place]] = Job(f"{number}_{index}" if index.isdigit() else number, state, reason, host)
    return found


def _arrays(submission: Path) -> dict[str, list[Path]]:
    """Key -> directories of the trials of its tasks."""
    return {
        path.parent.name: [submission / name for name in read_json(path)["trials"]]
        for path in sorted((submission / FOLDER).glob("*/trials.json"))
    }


def last_jobs(submission: Path) -> dict[Path, str]:
    """The id of the last job that was submitted for a trial, also of those that have left the queue."""
    found: dict[Path, tuple[float, str]] = {}
    for path in (submission / FOLDER).glob("*/trials.json"):
        content = read_json(path)
        for name, job in zip(content["trials"], content["jobs"], strict=False):
            found[submission / name] = max(found.get(submission / name, (0.0, "")), (content["submitted"], job))
    return {directory: job for directory, (_, job) in found.items()}


def end_of(job: str) -> str | None:
    """How a job that left the queue ended, as `FAILED, exit status 2`; None once SLURM has forgotten it."""
    try:
        shown = _ask("scontrol", "--oneliner", "show", "job", job)
    except UsageError:
        return None
    facts = dict(re.findall(r"(\w+)=(\S+)", shown))
    if "JobState" not in facts:
        return None
    status = facts.get("ExitCode", "0:0").partition(":")[0]
    return f"{facts['JobState']}, exit status {status}" if status != "0" else str(facts["JobState"])


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise UsageError(f"No {command[0]} on PATH: is this machine part of a SLURM cluster?") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{command[0]} did not answer for 60 s. Try again when SLURM does.") from None
    if done.returncode:
        raise UsageError(f"{command[0]} failed: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error: )?", "", lines[-1]) if lines else "no message"


# ---------------------------------------------------------------------------------------------------- before submitting


def require_slurm() -> None:
    """Raises `UsageError` where nothing can be submitted."""
    for name in ("sbatch", "squeue", "srun"):
        if shutil.which(name) is None:
            raise UsageError(f"--launcher slurm: no {name} on PATH. Start on a machine of the SLURM cluster.")


def sbatch_parameters(options: TuneOptions) -> dict[str, str | bool]:
    """`--slurm` as sbatch's parameters, by their long names.

    Raises `UsageError` for what is no parameter, and for those that the launcher sets itself.
    """
    parameters: dict[str, str | bool] = {}
    for text in options.slurm:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z-]*", name) or (equals and not value):
            raise UsageError(f"--slurm {text!r}: write KEY=VALUE with a long option of sbatch, as in partition=gpu.")
        if name in _OURS:
            raise UsageError(f"--slurm {text!r}: `algoperf tune` sets {name} itself.")
        parameters[name] = value if equals else True
    return parameters


def parse_time(text: str) -> int:
    """Minutes of a time limit in one of SLURM's forms: minutes, minutes:seconds, h:m:s, d-h, d-h:m, d-h:m:s.

    Raises `UsageError` for anything else.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise UsageError(f"--slurm time={text}: write minutes, or h:mm:ss, or d-hh:mm.")
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)


def time_limit(plan: Plan, workload: str, options: TuneOptions) -> int:
    """Minutes that SLURM gives one trial: `--slurm time=...`, else what the plan expects, with room.

    Raises `UsageError` for a limit in which no trial can use up its budget: each restart takes up what the checkpoint
    holds, so there must be checkpoints, and as many restarts as that takes.
    """
    given = sbatch_parameters(options).get("time")
    budget = budget_of(plan.of(workload)[0].options, plan.version).seconds
    expected = plan.seconds(workload) or budget
    if given is None:
        if not math.isfinite(expected):
            raise UsageError(f"The budget of {workload} is in steps: say how long, as in --slurm time=60 (minutes).")
        return math.ceil((1.5 * expected + 3600) / 60)
    minutes = parse_time(str(given))
    if minutes < 1:
        raise UsageError(f"--slurm time={given}: must be at least a minute.")
    if math.isfinite(expected) and expected > minutes * 60:
        restarts = math.ceil(expected / max(minutes * 60 - WARNING_SECONDS, 1)) - 1
        if not options.checkpoint or restarts > options.retries:
            remedy = (
                "and --no-checkpoint leaves nothing to go on from"
                if not options.checkpoint
                else (f"and would be taken up {restarts} times; --retries allows {options.retries}")
            )
            raise UsageError(f"--slurm time={given}: a trial of {workload} takes up to {duration(expected)}, {remedy}.")
    return minutes


# ------------------------------------------------------------------------------------------------------------ submitting


@dataclass(frozen=True)
class Submitted:
    workload: str
    job: str  # of the array
    trials: int
    minutes: int


def submit(plan: Plan, options: TuneOptions, commands: Mapping[Path, Sequence[str]]) -> Iterable[Submitted]:
    """Submits the plan's missing trials, an array for each workload, and tells each as it is submitted.

    Args:
        commands: what runs each trial, by its directory.

    Raises `UsageError` where SLURM refuses. What was submitted before that stays in the queue.
    """
    require_slurm()
    waiting = plan.to_run
    limits = {trial.options.workload: 0 for trial in waiting}
    for workload in limits:
        limits[workload] = time_limit(plan, workload, options)  # all of them, before the first is submitted
    for workload, minutes in limits.items():
        trials = [trial for trial in waiting if trial.options.workload == workload]
        job = _submit_array(trials, plan, options, commands, minutes)
        yield Submitted(workload, job, len(trials), minutes)


def _submit_array(
    trials: Sequence[PlannedTrial],
    plan: Plan,
    options: TuneOptions,
    commands: Mapping[Path, Sequence[str]],
    minutes: int,
) -> str:
    submitit = _submitit()
    key = uuid.uuid4().hex[:12]
    submission = options.out.resolve() / plan.submission.name
    folder = submission / FOLDER / key
    folder.mkdir(parents=True)
    names = [str(trial.directory.relative_to(options.out / plan.submission.name)) for trial in trials]
    directories = [submission / name for name in names]
    note: dict[str, Any] = {
        "trials": names,
        "submitted": time.time(),
        "jobs": [],
    }
    write_json(folder / "trials.json", note)
    parameters = {"requeue": True, **sbatch_parameters(options)}
    parameters.pop("time", None)
    if options.device == "cuda" and not any("gpu" in name or name == "gres" for name in parameters):
        parameters["gpus-per-node"] = str(plan.ranks)
    if plan.ranks > 1:
        parameters.setdefault("cpus-per-task", str(plan.ranks))
    cores = parameters.get("cpus-per-task")
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(
        job_name=f"{_PREFIX}{key}",
        time=minutes,
        nodes=1,
        ntasks_per_node=1,
        array_parallelism=options.jobs or len(trials),
        signal_delay_s=WARNING_SECONDS,
        wckey=None,  # submitit's own default is refused where these are enforced
        srun_args=[f"--cpus-per-task={cores}"] if cores else None,  # srun does not take it from sbatch
        additional_parameters=parameters,
    )
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), executor.batch():
            jobs = [
                executor.submit(
                    SupervisedTrial(
                        directory=directory,
                        command=tuple(commands[trial.directory]),
                        hang_timeout=options.hang_timeout,
                        keeps_state=options.checkpoint,
                        retries=options.retries,
                        own_compiler_cache=plan.version.protocol.compile_policy == "fresh",
                    )
                )
                for trial, directory in zip(trials, directories, strict=True)
            ]
    except (
        RuntimeError,
        OSError,
    ) as error:  # submitit's errors are RuntimeErrors; the list stays, should it run after all
        reason = _last_line(told.getvalue()) if told.getvalue() else str(error).splitlines()[0]
        raise UsageError(f"SLURM refused the trials of {trials[0].options.workload}: {reason}") from error
    for directory, job in zip(directories, jobs, strict=True):
        for kind, path in (("out", job.paths.stdout), ("err", job.paths.stderr)):
            _link(directory.with_name(f"slurm_{directory.name}.{kind}"), path)
    note["jobs"] = [job.job_id for job in jobs]  # last: once the jobs are noted, all of this is there
    write_json(folder / "trials.json", note)
    return str(jobs[0].job_id).partition("_")[0]


def _submitit() -> ModuleType:
    """The library, without its set-up of logging, which would close the handlers that are there."""
    given = os.environ.get("SUBMITIT_LOG_LEVEL")
    os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"
    try:
        return importlib.import_module("submitit")
    finally:
        if given is None:
            del os.environ["SUBMITIT_LOG_LEVEL"]
        else:
            os.environ["SUBMITIT_LOG_LEVEL"] = given


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))


# --------------------------------------------------------------------------------------------------------- in the task


@dataclass(frozen=True)
class SupervisedTrial:
    """What a task of an array runs; pickled by submitit."""

    directory: Path
    command: tuple[str, ...]
    hang_timeout: float
    keeps_state: bool
    retries: int
    own_compiler_cache: bool  # where all compilation is charged, nothing that an earlier trial compiled may be found

    def __call__(self) -> str:
        """Runs the trial to its end and returns its status; the exit status is not 0 where it has no result."""
        adopt_orphans()
        stop: list[int] = []

        def request(number: int, _frame: FrameType | None) -> None:
            stop.append(number)

        for number in (signal.SIGTERM, signal.SIGINT, *_WARNINGS):
            signal.signal(number, request)
        for attempt in range(self.retries + 1):
            status, void, message = self._attempt(stop)
            _say(f"{self.directory}: {status or 'not started'}{' (void)' * void}. {message}")
            if status is not Status.PREEMPTED or stop or attempt == self.retries:
                break
        if status is Status.PREEMPTED and stop:
            self._queue_again()
            sys.exit(Preempted.exit_code)
        if void:
            sys.exit(1)
        return str(status)

    def _attempt(self, stop: list[int]) -> tuple[Status | None, bool, str]:
        """(status, whether it is void, message); the status is None where the trial wrote no record."""
        path = self.directory / "trial.json"
        if is_locked(self.directory):
            return None, True, "It runs in another process."
        state, status = inspect(self.directory, read_json(path) if path.exists() else None)
        if state is State.DONE:
            return status, False, "It has its result already."
        resumed = make_room(self.directory, keeps_state=self.keeps_state)
        attempts = begin_attempt(self.directory, resumed=resumed, slurm_job=this_job())
        with tempfile.TemporaryDirectory(prefix="algoperf-compiled-") as cache:
            watched = Watched(
                self.command,
                self.directory,
                output_file(self.directory),
                hang_timeout=self.hang_timeout,
                environment=compiler_caches(Path(cache)) if self.own_compiler_cache else {},
                ignored_signals=_WARNINGS,  # SLURM sends them to every process; the trial hears of it from here
            )
            while (ended := watched.poll()) is None:
                if stop and not watched.stopping:
                    watched.stop()
                time.sleep(POLL_SECONDS)
        words = watched.last_words()
        summary = close(self.directory, attempts, ended, words)
        if summary is None:
            return (Status.PREEMPTED if stop else None), True, words
        return Status(summary["status"]), summary["void"], summary.get("error", {}).get("message", "")

    def _queue_again(self) -> None:
        """Asks SLURM to run this job again, unless it has been decided already what becomes of it."""
        job, restarts = this_job(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        state = _ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip()
        if state != "RUNNING":  # SLURM itself preempts, requeues or cancels it
            return
        if restarts >= self.retries:
            _say(f"Queued again {restarts} times; the next `algoperf tune` submits it anew.")
            return
        _ask("scontrol", "requeue", job)
        _say("Its state is saved; queued again.")


def _say(text: str) -> None:
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def this_job() -> str:
    """The job that this process belongs to, as squeue names it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
