"""`algoperf status RUNS`: how every trial stands, from its files and, where trials were submitted, from SLURM's queue."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.runner.launch import slurm
from algoperf_torch.runner.plan import duration
from algoperf_torch.runner.record import read_heartbeat, read_json, read_rows
from algoperf_torch.runner.status import Status
from algoperf_torch.runner.supervise import is_locked, output_file, read_attempts
from algoperf_torch.versions import recorded_version

SILENT_SECONDS = 900.0  # a trial on another host that has not beaten for so long is taken for dead


@dataclass(frozen=True)
class StatusOptions:
    """Tells how trials stand: pending, running, or how they ended."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs."""
    json: bool = False
    """Print a JSON array, an object for each trial."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One trial. `None`: not known, or not yet."""

    submission: str
    workload: str
    study: int
    trial: int
    state: str  # pending, running, stopped, lost, no record; or how it ended: reached, budget_exhausted, ...
    void: bool
    steps: int | None
    metric: str | None  # of the last evaluation, on the validation data
    value: float | None
    elapsed_seconds: float | None  # since the trial's process started; of a finished trial, until it ended
    submission_seconds: float | None  # charged up to the last evaluation
    host: str | None
    job: str | None
    note: str
    directory: str


def main(options: StatusOptions) -> int:
    """Prints the table. 0, whatever the trials' state."""
    found = [standing for run in options.runs for standing in standings(run)]
    if options.json:
        sys.stdout.write(json.dumps([asdict(standing) for standing in found], indent=2) + "\n")
        return 0
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    console.print(_table(found))
    counts = Counter(standing.state + (" (void)" * standing.void) for standing in found)
    console.print(f"{len(found)} trials: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    return 0


def standings(run: Path) -> list[Standing]:
    """All trials below a directory of runs, a submission's, or one above several.

    Raises `UsageError` where there is no directory, no trial, or a queue that does not answer.
    """
    if not run.is_dir():
        raise UsageError(f"No directory {run}. Give the directory of runs, for example: algoperf status runs/")
    found = []
    for submission in sorted(_submissions(run)):
        jobs = slurm.last_jobs(submission)
        queue = slurm.queued(submission) if jobs and slurm.has_slurm() else {}
        written = {path.parent for path in submission.glob("study_*/*_pytorch/trial_*/trial.json")}
        found += [
            _standing(directory, queue.get(directory), jobs.get(directory))
            for directory in sorted(written | set(queue) | set(jobs), key=_place)
        ]
    if not found:
        raise UsageError(f"No trial below {run}: no file trial.json, and nothing that was submitted to SLURM.")
    return found


def _submissions(run: Path) -> set[Path]:
    below = {path.parents[3] for path in run.rglob("study_*/*_pytorch/trial_*/trial.json")}
    return below | {path.parents[2] for path in run.rglob(f"{slurm.FOLDER}/*/trials.json")}


def _place(directory: Path) -> tuple[str, str, int, int]:
    """(submission, workload, study, trial) from the layout of the folders."""
    submission, study, workload, trial = directory.absolute().parts[-4:]
    return submission, workload.removesuffix("_pytorch"), _number(study), _number(trial)


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def _standing(directory: Path, job: slurm.Job | None, last_job: str | None) -> Standing:
    submission, workload, study, number = _place(directory)
    note = ""
    summary: dict[str, Any] = {}
    try:
        if (directory / "trial.json").exists():
            summary = read_json(directory / "trial.json")
    except LogError as error:
        note = str(error)
    beat = read_heartbeat(directory / "heartbeat")
    state, told = _state(directory, summary, beat[2] if beat else None, job, last_job)
    rows = _rows(directory)
    metric = _metric(summary)
    result = summary.get("result") or {}
    live = state == "running" and beat is not None
    started = summary.get("started")
    ended = time.time() if live else summary.get("ended", beat[2] if beat else None)
    return Standing(
        submission=submission,
        workload=workload,
        study=study,
        trial=number,
        state=state,
        void=bool(summary.get("void")) and state not in ("pending", "running"),
        steps=beat[0] if beat is not None and "steps" not in result else result.get("steps"),
        metric=metric,
        value=_cell(rows, f"validation/{metric}"),
        elapsed_seconds=max(ended - started, 0.0) if started is not None and ended is not None else None,
        submission_seconds=result.get("submission_seconds", _cell(rows, "accumulated_submission_time")),
        host=summary.get("process", {}).get("host") or (job.host if job else None) or None,
        job=job.id if job else last_job,
        note=note or told,
        directory=str(directory),
    )


def _state(
    directory: Path, summary: Mapping[str, Any], beat: float | None, job: slurm.Job | None, last_job: str | None
) -> tuple[str, str]:
    """(state, what else there is to say)."""
    error = summary.get("error", {}).get("message", "")
    status = summary.get("status")
    ended = status is not None and status not in (Status.RUNNING, Status.PREEMPTED)
    if job is not None and job.state != "COMPLETING" and not ended:
        if job.state in ("RUNNING", "SUSPENDED"):
            return "running", "" if job.state == "RUNNING" else job.state.lower()
        return "pending", job.reason if job.reason != "None" else ""
    if is_locked(directory):
        return "running", "" if status is not None else "starting"
    if status == Status.RUNNING:
        if _is_elsewhere(summary) and beat is not None and time.time() - beat < SILENT_SECONDS:
            return "running", ""
        return "lost", "its processes are gone; the next `algoperf tune` takes it up"
    if status == Status.PREEMPTED:
        return "stopped", error
    if status is not None:
        return str(status), error
    return "no record", _last_sign(directory, last_job)


def _is_elsewhere(summary: Mapping[str, Any]) -> bool:
    return bool(summary.get("process", {}).get("host") != socket.gethostname())


def _last_sign(directory: Path, last_job: str | None) -> str:
    """What there is to say of a trial that was submitted and left nothing."""
    attempts = read_attempts(directory)
    if attempts and "message" in attempts[-1]:
        return str(attempts[-1]["message"])
    end = slurm.end_of(last_job) if last_job and slurm.has_slurm() else None
    return f"job {last_job} ended: {end or 'SLURM has forgotten it'}; see {output_file(directory).parent}/slurm_*"


def _rows(directory: Path) -> list[dict[str, str]]:
    path = directory / "eval_measurements.csv"
    return read_rows(path) if path.exists() else []


def _metric(summary: Mapping[str, Any]) -> str | None:
    try:
        return recorded_version(summary).terms(summary["workload"]).validation.metric
    except (KeyError, UsageError):  # no record yet, or a version file that is not here
        return None


def _cell(rows: Sequence[Mapping[str, str]], column: str) -> float | None:
    try:
        return float(rows[-1][column])
    except (IndexError, KeyError, ValueError):
        return None


def _table(found: Sequence[Standing]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("trial", "state", "steps", "last metric", "elapsed", "host", "job", ""):
        table.add_column(name, justify="right" if name in ("steps", "elapsed") else "left", overflow="fold")
    for row in found:
        table.add_row(*(Text(text) for text in _cells(row)))
    return table


def _cells(row: Standing) -> Iterator[str]:
    yield f"{row.submission}/study_{row.study}/{row.workload}/trial_{row.trial}"
    yield row.state + (" (void)" if row.void else "")
    yield "" if row.steps is None else str(row.steps)
    yield "" if row.value is None else f"{row.metric} {row.value:.4g}"
    yield "" if row.elapsed_seconds is None else duration(row.elapsed_seconds)
    yield row.host or ""
    yield row.job or ""
    yield row.note
