"""One trial watched from outside: a child process, what it does second by second, and how it ended.

The trial tells its step and phase through its heartbeat file. From that, the exit status, and the kernel's count of
processes killed for lack of memory, `verdict` names the end of a trial that could not name it itself. Imports no torch.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from algoperf_torch.errors import Preempted
from algoperf_torch.runner.record import read_heartbeat, read_json, write_json
from algoperf_torch.runner.status import TIMED_PHASES, Phase, Status, is_void

POLL_SECONDS = 0.25
STOP_SECONDS = 120.0  # what a trial gets to save its state after SIGTERM
GAP_SECONDS = 5.0  # a longer pause between two looks means that the supervisor itself was stopped
TOKEN = "SUPERVISED_TRIAL"  # environment variable by which every process of a trial is found

_LOST_PEER = re.compile(r"closed by peer|reset by peer|gloo|NCCL", re.IGNORECASE)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ERRORS = (Status.HARNESS_ERROR, Status.SUBMISSION_ERROR)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child process ended, as seen from outside."""

    exit_code: int | None = None  # None where a signal ended the process
    signal: int | None = None
    hung: bool = False  # it was killed because nothing moved any more
    stopped: bool = False  # it was asked to stop
    oom_killed: bool = False  # the kernel killed processes for lack of memory meanwhile
    phase: Phase = Phase.SETUP  # the last one seen
    step: int = 0
    wall_seconds: float = 0.0
    unobserved_seconds: float = 0.0  # the supervisor itself was stopped
    phase_seconds: Mapping[str, float] = field(default_factory=dict)  # wall time by phase, sampled


def verdict(ended: Ended) -> tuple[Status, str]:
    """The status of a trial that ended without writing one, and the reason in words."""
    where = f"while in phase {ended.phase.name.lower()}, step {ended.step}"
    by_submission = ended.phase in TIMED_PHASES
    if ended.hung:
        return (Status.SUBMISSION_ERROR if by_submission else Status.HARNESS_ERROR), f"Hung {where}; killed."
    if ended.stopped or ended.exit_code == Preempted.exit_code or ended.signal in _STOP_SIGNALS:
        return Status.PREEMPTED, f"Stopped on request {where}."
    if ended.signal == signal.SIGKILL:
        if ended.oom_killed:
            return Status.OUT_OF_MEMORY, f"Killed by the kernel for lack of memory {where}."
        return Status.PREEMPTED, f"Killed from outside {where}."
    if ended.signal is not None:
        how = f"Died of {signal.Signals(ended.signal).name}"
    else:
        how = f"The process ended with exit status {ended.exit_code} and without a result"
    return (Status.SUBMISSION_ERROR if by_submission else Status.HARNESS_ERROR), f"{how} {where}."


# -------------------------------------------------------------------------------------------------------- the machine


def oom_kills(root: Path = Path("/")) -> tuple[int, ...]:
    """How many processes the kernel has killed for lack of memory: on the machine, and in this control group."""
    counts = _counter(root / "proc/vmstat")
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if not controllers:
            counts += _counter(root / "sys/fs/cgroup" / relative / "memory.events")
        elif "memory" in controllers.split(","):
            counts += _counter(root / "sys/fs/cgroup/memory" / relative / "memory.oom_control")
    return tuple(counts)


def _counter(path: Path) -> list[int]:
    return [int(line.split()[1]) for line in _lines(path) if line.startswith("oom_kill ")]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []  # this kernel has no such counter


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process, so that `processes_of` finds them."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def processes_of(token: str) -> list[psutil.Process]:
    """All descendants of this process that belong to a trial."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.environ().get(TOKEN) == token:
                found.append(process)
    return found


def kill_processes(token: str, main: subprocess.Popen[bytes]) -> None:
    """Ends whatever is left of a trial. `main`, its first process, keeps its exit status."""
    for _ in range(5):  # a process may start another one before it dies
        found = processes_of(token)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([process for process in found if process.pid != main.pid], timeout=2)
        if not found or all(process.pid == main.pid for process in found):
            return


def compiler_caches(folder: Path) -> dict[str, str]:
    """The environment in which a trial keeps all compiled code in a folder of its own."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def is_locked(directory: Path) -> bool:
    """Whether a process is running the trial of this directory: it holds a lock as long as it lives."""
    try:
        handle = os.open(directory / ".lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


# -------------------------------------------------------------------------------------------------------- one child


class Watched:
    """A running child process and its heartbeat.

    The child is told to stop when this process dies, gets a session of its own (Ctrl-C reaches only the supervisor, which
    decides), writes no core dumps, and prints the stacks of its threads when it is killed for hanging.

    Args:
        command: what to run.
        directory: of the trial; its heartbeat file is read.
        log: file to which the child's output is appended.
        hang_timeout: seconds without a step, a change of phase, or a sign of life in an evaluation, after which the
            child is killed.
        environment: more variables for the child.
        processors: the logical processors that the child may use; `None`: as this process.
        ignored_signals: what the child and all that it starts do not hear.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        log: Path,
        *,
        hang_timeout: float,
        environment: Mapping[str, str] | None = None,
        processors: Iterable[int] | None = None,
        ignored_signals: Sequence[signal.Signals] = (),
    ) -> None:
        self.directory = directory
        self.phase, self.step = Phase.SETUP, 0
        self._beat: tuple[int, Phase, float] | None = None
        self.stopping = False
        self._token = f"{os.getpid()} {time.monotonic_ns()} {directory}"
        self._heartbeat = directory / "heartbeat"
        self._heartbeat.unlink(missing_ok=True)  # an earlier process's
        self._hang_timeout = hang_timeout
        self._oom_before = oom_kills()
        self._log_start = log.stat().st_size if log.exists() else 0
        self._log = log
        self._hung = False
        self._kill_at: float | None = None
        self._phase_seconds: dict[str, float] = {}
        self._unobserved = 0.0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "PYTHONFAULTHANDLER": "1",
                    **(environment or {}),
                    TOKEN: self._token,
                },
                preexec_fn=_child_setup(None if processors is None else set(processors), ignored_signals),
            )
        self.started = self._looked = self._moved = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def poll(self) -> Ended | None:
        """Looks at the child; how it ended, once it has. Call it every `POLL_SECONDS`."""
        self._look()
        code = self._process.poll()
        now = time.monotonic()
        if code is None:
            if self._kill_at is None and now - self._moved > self._hang_timeout:
                self._hung = True
                self._signal_all(signal.SIGABRT)  # prints the stacks
                self._kill_at = now + 5.0
            if self._kill_at is not None and now > self._kill_at:
                kill_processes(self._token, self._process)
            return None
        kill_processes(self._token, self._process)
        self._look()  # what it did last
        by_signal = -code if code < 0 else code - 128 if code > 128 else None  # a launcher of ranks reports 128 + n
        return Ended(
            exit_code=code if by_signal is None else None,
            signal=by_signal,
            hung=self._hung,
            stopped=self.stopping,
            oom_killed=any(after > before for before, after in zip(self._oom_before, oom_kills(), strict=False)),
            phase=self.phase,
            step=self.step,
            wall_seconds=now - self.started,
            unobserved_seconds=self._unobserved,
            phase_seconds=dict(self._phase_seconds),
        )

    def _look(self) -> None:
        now = time.monotonic()
        passed, self._looked = now - self._looked, now
        beat = read_heartbeat(self._heartbeat)
        if beat is not None and beat != self._beat:
            if (beat[0], beat[1]) != (self.step, self.phase) or beat[1] not in TIMED_PHASES:
                self._moved = now  # the harness beats within a long evaluation; a step that hangs does not count as one
            self._beat, self.step, self.phase = beat, beat[0], beat[1]
        if passed > GAP_SECONDS:
            self._unobserved += passed
            self._moved = now
        else:
            name = self.phase.name.lower()
            self._phase_seconds[name] = self._phase_seconds.get(name, 0.0) + passed

    def stop(self) -> None:
        """Asks the child to save its state and end; kills it when it has not done so in time, or when asked again."""
        now = time.monotonic()
        if self.stopping:
            self._kill_at = now
            return
        self.stopping = True
        self._kill_at = now + STOP_SECONDS
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for process in processes_of(self._token):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def last_words(self) -> str:
        """The last thing that the child printed that looks like a message, or its last line."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_start, self._log.stat().st_size - 20_000))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("algoperf: ")]
        return told[-1].removeprefix("algoperf: ") if told else lines[-1] if lines else "no output"


def _child_setup(processors: set[int] | None, ignored_signals: Sequence[signal.Signals]) -> Callable[[], None]:
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def set_up() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(Preempted.exit_code)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in ignored_signals:
            signal.signal(number, signal.SIG_IGN)
        if processors is not None:
            os.sched_setaffinity(0, processors)

    return set_up


# -------------------------------------------------------------------------------------------------------- the record


def attempts_file(directory: Path) -> Path:
    """Lies beside the trial's directory: it outlives a fresh start of the trial."""
    return directory.with_name(f"supervisor_{directory.name}.json")


def output_file(directory: Path) -> Path:
    """What the processes of a trial print, all attempts one after the other."""
    return directory.with_name(f"output_{directory.name}.log")


def begin_attempt(directory: Path, *, resumed: bool, **others: Any) -> list[dict[str, Any]]:
    """Notes that this process starts the trial, and `others`; returns all attempts at it, the new one last."""
    me = psutil.Process()
    attempt = {
        **others,
        "supervisor": {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()},
        "started": time.time(),
        "resumed": resumed,
    }
    attempts = [*read_attempts(directory), attempt]
    write_json(attempts_file(directory), {"attempts": attempts})
    return attempts


def read_attempts(directory: Path) -> list[dict[str, Any]]:
    """Attempts at this trial so far, oldest first; those that were voided and started anew are among them."""
    path = attempts_file(directory)
    return list(read_json(path)["attempts"]) if path.exists() else []


def close(directory: Path, attempts: list[dict[str, Any]], ended: Ended, last_words: str) -> dict[str, Any] | None:
    """Completes the record of a trial whose process has ended; returns `trial.json`, None where there is none.

    Gives it a status where it has none, compares its clock with the supervisor's, and adds the section `supervisor`.
    """
    attempt = attempts[-1]
    attempt.update(
        ended=time.time(),
        wall_seconds=ended.wall_seconds,
        unobserved_seconds=ended.unobserved_seconds,
        phase_seconds=dict(ended.phase_seconds),
        exit_code=ended.exit_code,
        signal=ended.signal,
        hung=ended.hung,
    )
    path = directory / "trial.json"
    summary = read_json(path) if path.exists() and not is_locked(directory) else None  # locked: somebody else's trial
    if summary is None:
        attempt["message"] = last_words
    else:
        summary["supervisor"] = _section(attempts)
        if summary["status"] == Status.RUNNING:
            summary |= _named(ended, directory)
        elif _lost_a_rank(summary, directory, ended) or _failed_while_stopping(summary, ended):
            phase = Phase[summary["error"]["phase"].upper()]
            summary |= _named(replace(ended, phase=phase), directory)
        elif summary["status"] in (Status.REACHED, Status.BUDGET_EXHAUSTED, Status.DIVERGED):
            _judge_clock(summary, attempts)
        attempt["status"] = summary["status"]
        write_json(path, summary)
        if summary["status"] != Status.PREEMPTED:  # nobody will go on from here
            for checkpoint in directory.glob("checkpoint_*.pt"):
                checkpoint.unlink()
    write_json(attempts_file(directory), {"attempts": attempts})
    return summary


def _named(ended: Ended, directory: Path) -> dict[str, Any]:
    """The entries of `trial.json` that name the end of a trial."""
    status, reason = verdict(ended)
    error = {
        "type": "ProcessEnded",
        "message": reason,
        "phase": ended.phase.name.lower(),
        "traceback": f"../{output_file(directory).name}",
    }
    return {"status": status.value, "void": is_void(status, ended.phase), "error": error}


def _lost_a_rank(summary: Mapping[str, Any], directory: Path, ended: Ended) -> bool:
    """Whether rank 0 failed only because another rank was gone, which left no message: rank 0 cannot know why."""
    error = summary.get("error")
    if error is None or summary["status"] not in _ERRORS:
        return False
    if ended.signal == signal.SIGKILL:  # rank 0 has lived on to write the error
        return True
    told = any(directory.glob("error_rank_*.json"))
    return not told and summary["status"] == Status.HARNESS_ERROR and bool(_LOST_PEER.search(error["message"]))


def _failed_while_stopping(summary: Mapping[str, Any], ended: Ended) -> bool:
    """Whether a trial failed after a request to stop, which may have ended its compiler's processes before itself."""
    return ended.stopped and "error" in summary and summary["status"] in _ERRORS


def close_abandoned(directory: Path) -> None:
    """Names the end of a trial that still says `running` although nobody runs it: its supervisor died, or had none."""
    summary = read_json(directory / "trial.json")
    beat = read_heartbeat(directory / "heartbeat")
    phase = Phase.SETUP if beat is None else beat[1]
    step = 0 if beat is None else beat[0]
    summary |= _named(Ended(stopped=True, phase=phase, step=step), directory)
    summary["error"]["message"] = f"The process ended unwatched, in phase {phase.name.lower()}, step {step}."
    write_json(directory / "trial.json", summary)


def _last_run(attempts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The attempts since the trial was last started afresh."""
    fresh = max((index for index, attempt in enumerate(attempts) if not attempt["resumed"]), default=0)
    return list(attempts[fresh:])


def _section(attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    phases: dict[str, float] = {}
    run = _last_run(attempts)
    for attempt in run:
        for name, seconds in attempt.get("phase_seconds", {}).items():
            phases[name] = phases.get(name, 0.0) + seconds
    return {
        "attempts": len(attempts),
        "wall_seconds": sum(attempt.get("wall_seconds", 0.0) for attempt in run),
        "phase_seconds": phases,
        "unobserved_seconds": sum(attempt.get("unobserved_seconds", 0.0) for attempt in run),
        "exit_code": attempts[-1]["exit_code"],
        "signal": attempts[-1]["signal"],
    }


def _judge_clock(summary: dict[str, Any], attempts: Sequence[Mapping[str, Any]]) -> None:
    """Flags a trial whose own clock disagrees with the supervisor's: less than was seen, or more than there was.

    What was seen is sampled, hence the tolerance. A resumed trial repeats what it lost, so it may show more than it
    charges.
    """
    charged = summary.get("result", {}).get("submission_seconds")
    run = _last_run(attempts)
    watched = not run[0]["resumed"] and all("wall_seconds" in attempt for attempt in run)  # from the start to the end
    if charged is None or summary.get("clock") != "real" or not watched:
        return
    section = summary["supervisor"]
    seen = section["phase_seconds"].get("training", 0.0)
    tolerance = 5.0 + 0.05 * charged
    reason = None
    if len(run) == 1 and charged < seen - tolerance:
        reason = f"{charged:.1f} s were charged, but the supervisor saw {seen:.1f} s of training"
    elif charged > section["wall_seconds"] + tolerance:
        reason = f"{charged:.1f} s were charged, but the processes lived for {section['wall_seconds']:.1f} s only"
    if reason is not None:
        flag = {"name": "clock", "reason": reason, "step": summary["result"]["steps"], "severity": "void", "rank": 0}
        summary.setdefault("validity", {}).setdefault("flags", []).append(flag)
        summary["void"] = True
