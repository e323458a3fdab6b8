"""`algoperf tune` runs what is missing of a benchmark and watches it; `algoperf plan` prints the same without running.

With `--launcher slurm` the trials are submitted, and watched on the machines that run them.

Every trial is a child process. A trial that fails never stops the next one; one that cannot name its own end gets its
status from the supervisor, and trials that say nothing about the algorithm are run again. All state is in the trials'
directories, so the supervisor may be killed at any moment and started again. Imports no torch.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from algoperf_torch.errors import LogError, Preempted, UsageError
from algoperf_torch.runner.launch import slurm
from algoperf_torch.runner.launch.local import to_arguments
from algoperf_torch.runner.plan import (
    Cost,
    Plan,
    PlannedTrial,
    State,
    SubmissionFacts,
    cost_of,
    duration,
    facts_of,
    make_plan,
    make_room,
    plan_lines,
    plan_table,
)
from algoperf_torch.runner.plan import TuneOptions as TuneOptions
from algoperf_torch.runner.record import read_json, trial_directory
from algoperf_torch.runner.status import Status
from algoperf_torch.runner.supervise import (
    POLL_SECONDS,
    STOP_SECONDS,
    Ended,
    Watched,
    adopt_orphans,
    begin_attempt,
    close,
    close_abandoned,
    compiler_caches,
    is_locked,
    output_file,
    read_attempts,
    verdict,
)

SLURM_POLL_SECONDS = 5.0  # a queue is asked seldom: thousands share it

CommandOf = Callable[[PlannedTrial, int], Sequence[str]]

# ---------------------------------------------------------------------------------------------------- the two commands


def main(options: TuneOptions) -> int:
    return tune(options)


def plan_main(options: TuneOptions) -> int:
    """Prints what `tune` would run, with its cost. Runs nothing but the probes that measure it."""
    console = _console()
    facts = facts_of(options)
    if options.launcher == "slurm":
        plan = _plan_with_queue(options, facts)
        _show(plan, options.jobs or len(plan.to_run), console)
        return 0
    plan = make_plan(options, facts)
    slots = _Slots(options, plan.ranks)
    adopt_orphans()
    with _stop_requests() as stop:
        plan = _measured(plan, options, trial_command, slots, stop, console)
    _show(plan, len(slots.free), console)
    return Preempted.exit_code if stop else 0


def tune(options: TuneOptions, *, command: CommandOf | None = None, facts: SubmissionFacts | None = None) -> int:
    """Runs all missing trials. The exit status is 0 when every trial has a result, hit or miss, or is in SLURM's queue.

    It is 1 when some have none (void, or they could not be started), 75 when the supervisor was asked to stop.

    Args:
        command: (trial, number of ranks) -> the command that runs it; default: `trial_command`.
        facts: of the submission; default: it is loaded in a process of its own.

    Raises `UsageError` for options that cannot be, and where another process works in the same directories.
    """
    console = _console()
    if options.launcher == "slurm":
        slurm.require_slurm()
    facts = facts or facts_of(options)
    plan = make_plan(options, facts)
    if options.launcher == "slurm":
        return _tune_on_slurm(plan, options, command or trial_command, facts, console)
    slots = _Slots(options, plan.ranks)
    adopt_orphans()
    with _stop_requests() as stop, _locks(plan):
        _refuse_queued(plan, options)
        _settle(plan, stop, console)
        plan = make_plan(options, facts)  # again, now that nobody else changes what is there
        plan = _measured(plan, options, command or trial_command, slots, stop, console)
        _show(plan, len(slots.free), console)
        supervisor = _Supervisor(plan, options, command or trial_command, slots, stop, console)
        try:
            supervisor.run()
        except OSError as error:
            raise UsageError(
                f"Cannot write to {options.out}: {error.strerror or error}. The same command goes on."
            ) from error
        finally:
            supervisor.kill_all()
        return _report(plan, supervisor.results, options, console, stopped=bool(stop))


def _tune_on_slurm(
    plan: Plan, options: TuneOptions, command: CommandOf, facts: SubmissionFacts, console: Console
) -> int:
    """Submits what is missing and not in the queue; waits for it if asked to."""
    with _stop_requests() as stop:
        with _locks(plan):
            _settle(_plan_with_queue(options, facts), stop, console)
            plan = _plan_with_queue(options, facts)
            _show(plan, options.jobs or len(plan.to_run), console)
            for job in slurm.submit(
                plan, options, {trial.directory: command(trial, plan.ranks) for trial in plan.to_run}
            ):
                trials = "1 trial" if job.trials == 1 else f"{job.trials} trials"
                console.print(f"{job.workload}: {trials} submitted as job {job.job}, {duration(job.minutes * 60)} each")
                if stop:
                    break
        if not options.wait:
            console.print(f"How they stand: algoperf status {options.out}")
            return Preempted.exit_code if stop else 0
        while not stop and any(trial.state is State.QUEUED for trial in _plan_with_queue(options, facts).trials):
            time.sleep(SLURM_POLL_SECONDS)
    if stop:
        console.print("[yellow]no longer waiting; what is in the queue stays there[/]")
    return _report(_plan_with_queue(options, facts), {}, options, console, stopped=bool(stop))


def _plan_with_queue(options: TuneOptions, facts: SubmissionFacts) -> Plan:
    """The plan with the trials that are in SLURM's queue marked as such.

    The queue is asked first: a trial that ends meanwhile is taken for queued, never for missing.
    """
    queue = slurm.queued(options.out / facts.name)
    plan = make_plan(options, facts)
    trials = [
        replace(trial, state=State.QUEUED) if trial.directory in queue and trial.state is not State.DONE else trial
        for trial in plan.trials
    ]
    return replace(plan, trials=tuple(trials))


def _refuse_queued(plan: Plan, options: TuneOptions) -> None:
    """Raises `UsageError` where a trial that is to be run here is in SLURM's queue."""
    queue = slurm.queued(options.out / plan.submission.name) if slurm.has_slurm() else {}
    for trial in plan.trials:
        if trial.directory in queue:
            raise UsageError(
                f"{trial.label} is in SLURM's queue as job {queue[trial.directory].id}. Use --launcher slurm, or scancel it."
            )


def trial_command(trial: PlannedTrial, ranks: int) -> list[str]:
    """The command line of one trial."""
    arguments = to_arguments(trial.options)
    if ranks == 1:
        return [sys.executable, "-m", "algoperf_torch.run", *arguments]
    return [sys.executable, "-m", "algoperf_torch.cli", "run", "--ranks", str(ranks), *arguments]


def _console() -> Console:
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)


def _show(plan: Plan, jobs: int, console: Console) -> None:
    console.print(plan_table(plan))
    for line in plan_lines(plan, jobs):
        console.print(line)


# ---------------------------------------------------------------------------------------------------- stop, locks, slots


@dataclass
class _Stop:
    """How often this process was asked to stop."""

    requests: int = 0

    def __bool__(self) -> bool:
        return self.requests > 0


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """SIGINT, SIGTERM and SIGHUP are counted inside."""
    stop = _Stop()

    def count(_signum: int, _frame: FrameType | None) -> None:
        stop.requests += 1

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, count) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _locks(plan: Plan) -> Iterator[None]:
    """Holds a lock for each (study, workload) of the plan, so that other supervisors keep out of them.

    Raises `UsageError` where another one holds it, or where the directory cannot be written.
    """
    handles = []
    try:
        for folder in dict.fromkeys(trial.directory.parent for trial in plan.trials):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                handles.append(os.open(folder / ".tune.lock", os.O_RDWR | os.O_CREAT, 0o644))
                fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{folder} is in use by another `algoperf tune`. Wait for it, or stop it.") from error
            except OSError as error:
                raise UsageError(f"Cannot write to {folder}: {error.strerror}. Choose another --out.") from error
        yield
    finally:
        for handle in handles:
            os.close(handle)


@dataclass(frozen=True)
class _Slot:
    """A share of this machine."""

    devices: tuple[str, ...] = ()  # empty: not restricted
    processors: tuple[int, ...] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {}


class _Slots:
    """The machine, divided among the trials that run at the same time."""

    def __init__(self, options: TuneOptions, ranks: int) -> None:
        devices = visible_devices() if options.device != "cpu" else []
        jobs = options.jobs or max(1, len(devices) // ranks)
        if devices and jobs * ranks > max(len(devices), ranks):
            raise UsageError(f"--jobs {jobs}: {jobs} x {ranks} ranks do not fit on {len(devices)} devices.")
        if jobs == 1:
            self.free = deque([_Slot()])
            return
        processors = sorted(os.sched_getaffinity(0))
        if len(processors) < jobs:
            raise UsageError(f"--jobs {jobs}: this machine has only {len(processors)} processors.")
        share = len(processors) // jobs
        self.free = deque(
            _Slot(
                devices=tuple(devices[job * ranks : (job + 1) * ranks]),
                processors=tuple(processors[job * share : (job + 1) * share]),
            )
            for job in range(jobs)
        )


def visible_devices() -> list[str]:
    """The GPUs that a child of this process would see, as `CUDA_VISIBLE_DEVICES` names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    import pynvml

    try:
        pynvml.nvmlInit()
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, no devices
        return []


# ---------------------------------------------------------------------------------------------------- before the trials


def _settle(plan: Plan, stop: _Stop, console: Console) -> None:
    """Waits for trials that outlive their supervisor, and closes those that nobody runs any more.

    Raises `UsageError` for a trial that somebody else runs.
    """
    for trial in plan.trials:
        if trial.state is State.QUEUED:
            continue
        if trial.state is State.RUNNING:
            _wait_for_orphan(trial, stop, console)
        if (trial.directory / "trial.json").exists():
            summary = read_json(trial.directory / "trial.json")
            if summary["status"] == Status.RUNNING:
                close_abandoned(trial.directory)


def _wait_for_orphan(trial: PlannedTrial, stop: _Stop, console: Console) -> None:
    """A trial is told to stop when its supervisor dies; it may still be saving its state."""
    attempts = read_attempts(trial.directory)
    if not attempts or _is_alive(attempts[-1]["supervisor"]):
        raise UsageError(f"{trial.label} is running in another process ({trial.directory}). Wait for it, or stop it.")
    console.print(f"{trial.label}: its supervisor is gone; waiting for it to stop")
    deadline = time.monotonic() + STOP_SECONDS
    while is_locked(trial.directory):
        if stop:
            raise Preempted("Stopped while waiting for a trial of a former supervisor.")
        if time.monotonic() > deadline:
            process = read_json(trial.directory / "trial.json")["process"]
            if not _is_alive(process):
                raise UsageError(f"{trial.directory}: a process that an earlier trial has left behind holds its lock.")
            with suppress(psutil.NoSuchProcess):
                psutil.Process(process["pid"]).kill()
            deadline += STOP_SECONDS
        time.sleep(POLL_SECONDS)


def _is_alive(process: dict[str, Any]) -> bool:
    """Whether a recorded process is still that process. One on another host counts as alive: nobody here can tell."""
    if process["host"] != socket.gethostname():
        return True
    try:
        started = psutil.Process(process["pid"]).create_time()
    except psutil.NoSuchProcess:
        return False
    return bool(abs(started - process["started"]) < 1.0)


def _measured(
    plan: Plan, options: TuneOptions, command: CommandOf, slots: _Slots, stop: _Stop, console: Console
) -> Plan:
    """The plan with the cost of every workload that has trials to run, by a short run where none is known."""
    if not options.probe_steps or options.clock != "real":
        return plan
    costs = dict(plan.costs)
    first_of = {trial.options.workload: trial for trial in reversed(plan.to_run)}
    for workload in plan.workloads:
        if workload not in first_of or workload in costs or stop:
            continue
        console.print(f"[dim]measuring {workload}: {options.probe_steps} steps[/]")
        cost, message = _probe(first_of[workload], plan, options, command, slots.free[0], stop)
        if cost is not None:
            costs[workload] = cost
        elif not stop:
            console.print(f"[yellow]{workload} could not be measured:[/] {message}")
    return replace(plan, costs=costs)


def _probe(
    trial: PlannedTrial, plan: Plan, options: TuneOptions, command: CommandOf, slot: _Slot, stop: _Stop
) -> tuple[Cost | None, str]:
    """Runs a few steps in a temporary directory; the cost, or None and what the run said."""
    with tempfile.TemporaryDirectory(prefix="algoperf-probe-") as folder:
        out = Path(folder)
        steps = min(options.probe_steps, options.max_steps or options.probe_steps)
        run = replace(trial.options, out=out, max_steps=steps, checkpoint=False, tensorboard=False, wandb=False)
        directory = trial_directory(out, plan.submission.name, run.study, run.workload, run.trial)
        directory.mkdir(parents=True)
        watched = Watched(
            command(replace(trial, options=run, directory=directory), plan.ranks),
            directory,
            out / "output.log",
            hang_timeout=options.hang_timeout,
            environment={**slot.environment, **_compiler_caches(plan, out)},
            processors=slot.processors,
        )
        asked = 0
        while watched.poll() is None:
            if stop.requests > asked:
                asked += 1
                watched.stop()
            time.sleep(POLL_SECONDS)
        found = cost_of(directory) if (directory / "trial.json").exists() else None
        return found, watched.last_words()


def _compiler_caches(plan: Plan, folder: Path) -> dict[str, str]:
    """Where all compilation is charged, a trial must not profit from what an earlier one has compiled."""
    return compiler_caches(folder) if plan.version.protocol.compile_policy == "fresh" else {}


# ---------------------------------------------------------------------------------------------------------- the trials


@dataclass
class _Running:
    trial: PlannedTrial
    watched: Watched
    slot: _Slot
    attempts: list[dict[str, Any]]


@dataclass
class _Result:
    """How a planned trial stands at the end; `status` is None where there is no trial.json."""

    status: Status | None
    void: bool
    message: str = ""


@dataclass
class _Supervisor:
    plan: Plan
    options: TuneOptions
    command: CommandOf
    slots: _Slots
    stop: _Stop
    console: Console
    results: dict[Path, _Result] = field(default_factory=dict)
    _pending: deque[PlannedTrial] = field(default_factory=deque)
    _running: list[_Running] = field(default_factory=list)
    _taken_up: Counter[Path] = field(default_factory=Counter)
    _refused: dict[str, str] = field(default_factory=dict)  # workload -> why its trials cannot start

    # ------------------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Runs the plan's missing trials until all are done or a stop is requested."""
        self._pending.extend(self.plan.to_run)
        asked = 0
        display = Live(console=self.console, auto_refresh=False, transient=True)
        with (
            tempfile.TemporaryDirectory(prefix="algoperf-compiled-") as caches,
            display if self.console.is_terminal else nullcontext() as live,
        ):
            while self._running or (self._pending and not self.stop):
                self._launch(Path(caches))
                if self.stop.requests > asked:
                    asked += 1
                    self._stop_all(again=asked > 1)
                for running in list(self._running):
                    ended = running.watched.poll()
                    if ended is not None:
                        self._running.remove(running)
                        self.slots.free.append(running.slot)
                        self._finish(running, ended)
                if live is not None:
                    live.update(self._now(), refresh=True)
                time.sleep(POLL_SECONDS)

    def _launch(self, caches: Path) -> None:
        while self._pending and self.slots.free and not self.stop:
            trial = self._pending.popleft()
            if is_locked(trial.directory):
                self.results[trial.directory] = _Result(None, True, "It runs in another process.")
                continue
            if trial.options.workload in self._refused:
                self.results[trial.directory] = _Result(None, True, self._refused[trial.options.workload])
                continue
            slot = self.slots.free.popleft()
            resumed = make_room(trial.directory, keeps_state=self.options.checkpoint)
            attempts = begin_attempt(trial.directory, resumed=resumed)
            watched = Watched(
                self.command(trial, self.plan.ranks),
                trial.directory,
                output_file(trial.directory),
                hang_timeout=self.options.hang_timeout,
                environment={**slot.environment, **_compiler_caches(self.plan, caches / str(trial.directory)[1:])},
                processors=slot.processors,
            )
            self._running.append(_Running(trial, watched, slot, attempts))
            self.console.print(f"[dim]{'taking up' if resumed else 'starting'} {trial.label}[/]")

    def kill_all(self) -> None:
        """Leaves no trial behind, whatever happened here."""
        for running in self._running:
            running.watched.stop()
            running.watched.stop()
            while running.watched.poll() is None:
                time.sleep(POLL_SECONDS)

    def _stop_all(self, *, again: bool) -> None:
        for running in self._running:
            running.watched.stop()
        what = "killing" if again else "saving the state of"
        self.console.print(f"[yellow]stopping: {what} {len(self._running)} running trials[/]")

    def _finish(self, running: _Running, ended: Ended) -> None:
        trial, words = running.trial, running.watched.last_words()
        try:
            summary = close(trial.directory, running.attempts, ended, words)
        except LogError as error:  # its trial.json is damaged; that is this trial's trouble alone
            summary, words = None, str(error)
        if summary is None:
            status = verdict(ended)[0]
            result = _Result(None, True, words)
        else:
            status = Status(summary["status"])
            result = _Result(status, summary["void"], summary.get("error", {}).get("message", ""))
        self.results[trial.directory] = result
        self._tell(trial, result, summary, ended)
        if status is Status.PREEMPTED and not self.stop:
            self._take_up(trial)
        elif summary is None and ended.exit_code == UsageError.exit_code:
            self._refused[trial.options.workload] = words
        elif summary is not None and summary["submission"]["digest"] != self.plan.submission.digest:
            self._pending.clear()
            self.console.print("[red]The submitted code has changed since the start; no further trial is started.[/]")

    def _take_up(self, trial: PlannedTrial) -> None:
        if self._taken_up[trial.directory] < self.options.retries:
            self._taken_up[trial.directory] += 1
            self._pending.appendleft(trial)

    # ------------------------------------------------------------------------------------------------ telling

    def _now(self) -> Table:
        """What runs at this moment."""
        table = Table.grid(padding=(0, 2))
        for running in self._running:
            watched = running.watched
            table.add_row(
                running.trial.label, watched.phase.name.lower(), f"step {watched.step}", duration(watched.seconds)
            )
        done = sum(trial.state is State.DONE for trial in self.plan.trials) + len(self.results)
        table.add_row(f"[bold]{done} of {len(self.plan.trials)} trials done[/]", "", "", "")
        return table

    def _tell(self, trial: PlannedTrial, result: _Result, summary: dict[str, Any] | None, ended: Ended) -> None:
        name = "not started" if result.status is None else str(result.status)
        colour = "green" if result.status is Status.REACHED else "yellow" if result.void else "default"
        facts = []
        outcome = (summary or {}).get("result", {})
        if result.status is Status.REACHED and outcome.get("validation_seconds") is not None:
            facts.append(f"after {outcome['validation_seconds']:.2f} s, {outcome['validation_step']} steps")
        elif outcome:
            facts.append(f"{outcome['submission_seconds']:.2f} s, {outcome['steps']} steps")
        facts.append(f"{duration(ended.wall_seconds)} in all")
        self.console.print(f"{trial.label}: [{colour}]{name}[/]{' (void)' if result.void else ''}, {'; '.join(facts)}")
        if result.message:
            self.console.print(f"  {result.message}", markup=False)


def _report(
    plan: Plan, results: Mapping[Path, _Result], options: TuneOptions, console: Console, *, stopped: bool
) -> int:
    """Prints how the plan stands and returns the exit status."""
    standing = Counter[str]()
    for trial in plan.trials:
        result = results.get(trial.directory)
        if result is not None:
            standing[("not started" if result.status is None else result.status) + (" (void)" * result.void)] += 1
        elif trial.state is State.DONE:
            standing[str(trial.status)] += 1
        elif trial.state is State.QUEUED:
            standing[str(trial.state)] += 1
        else:
            standing["not run"] += 1
    console.print(", ".join(f"{count} {name}" for name, count in sorted(standing.items())))
    missing = [trial for trial in plan.to_run if (result := results.get(trial.directory)) is None or result.void]
    if missing:
        trials = "1 trial has" if len(missing) == 1 else f"{len(missing)} trials have"
        console.print(f"{trials} no result yet; the same command goes on.")
    elif all(trial.state is not State.QUEUED for trial in plan.trials):
        console.print(f"Every trial has a result: algoperf score {options.out}")
    return Preempted.exit_code if stopped else 1 if missing else 0
