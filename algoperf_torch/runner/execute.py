"""Runs one trial from its options to the final `trial.json`, whatever happens in between."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from algoperf_torch.errors import (
    AlgoPerfError,
    DataError,
    DivergedError,
    Preempted,
    SubmissionError,
    UsageError,
)
from algoperf_torch.kernels import registry as kernels
from algoperf_torch.runner import checkpoint, distributed, hardware
from algoperf_torch.runner.build import (
    Parts,
    batch_size_of,
    build_trial,
    first_summary,
    hyperparameters_of,
    identity,
    remove,
    share_place,
    trial_seed,
)
from algoperf_torch.runner.options import RunOptions, budget_of, settled
from algoperf_torch.runner.progress import Console
from algoperf_torch.runner.record import TrialRecord, read_json, write_json
from algoperf_torch.runner.status import Phase, Status, is_void
from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.runner.trackers import Trackers
from algoperf_torch.runner.trial import Trial
from algoperf_torch.runner.validity import Guards
from algoperf_torch.spec import Ruleset
from algoperf_torch.versions import BenchmarkVersion, load_version
from algoperf_torch.workloads.base import Workload
from algoperf_torch.workloads.registry import build_workload

PEER_ERROR_SECONDS = 5.0  # how long rank 0 waits for another rank to say why it went away


class StopRequest:
    """Set by a signal to stop; the trial saves its state at its next look at the clock and ends."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, _signum: int, _frame: FrameType | None) -> None:
        self.requested = True


def execute(options: RunOptions) -> int:
    """Runs one trial to its end and returns the exit status.

    Raises `AlgoPerfError` for what is wrong before the trial starts; nothing is written then.
    """
    version = load_version(options.version)
    version.terms(options.workload)
    options = settled(options, version)
    workload = build_workload(
        options.workload, options.data_dir, model_scale=options.model_scale or version.model_scale
    )
    workload.reference_devices = version.protocol.batch_norm_groups
    stop = StopRequest()
    requests = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # a batch system's warning, unless a supervisor hears it
        requests.append(signal.SIGUSR1)
    handlers = {number: signal.signal(number, stop) for number in requests}
    ranks = distributed.join(options.device)
    try:
        set_numerics(options, version)
        if ranks.device.type == "cpu":  # it tells that there is no CUDA, which is known
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        environment = hardware.fingerprint(ranks.device)
        checks = hardware.compare(version, environment)
        hardware.require(version, checks)
        guards = Guards(
            ranks.device,
            rank=ranks.rank,
            real_clock=options.clock == "real",
            page_cache=version.protocol.page_cache,
            audit=True,
        )
        guards.arm(workload.evaluation_files())  # before any code of the submission is imported
        with guards.submission("import"):
            submission = load_submission(options.submission, schedule=options.schedule)
        if options.name:
            submission = replace(submission, name=options.name)
        hyperparameters = hyperparameters_of(options, submission, version)
        submission.algorithm.check_hyperparameters(hyperparameters)
        budget_of(options, version)  # a mistake in it is told before anything starts
        batch_size = batch_size_of(workload, submission.algorithm.batch_sizes, ranks, options.micro_batch)
        _open(workload, options, version, ranks)
        place = share_place(options, submission.name, ranks)
        parts = Parts(options, version, workload, submission, hyperparameters, batch_size, ranks, place, guards)
        saved = checkpoint.load(place.checkpoint, identity=identity(parts)) if place.checkpoint else None
        record = TrialRecord(place.directory) if ranks.is_main else None
        parts = replace(parts, record=record)
        if record is not None:
            point = None if options.ruleset is Ruleset.SELF else dict(hyperparameters)
            record.start(first_summary(parts, environment, [asdict(check) for check in checks]), point)
            write_json(place.directory / "meta_data_0.json", _meta_data(parts, environment))
        return _train(parts, saved, stop)
    finally:
        distributed.leave()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def set_numerics(options: RunOptions, version: BenchmarkVersion) -> None:
    """Threads, precision, kernels and determinism, as the options and the version say; the only place that sets them."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, hardware.usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    hardware.set_precision(version.precision)
    kernels.choose(options.kernels)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _open(workload: Workload, options: RunOptions, version: BenchmarkVersion, ranks: distributed.Ranks) -> None:
    """Opens the data on every rank; where one fails, all do."""
    error: AlgoPerfError | None = None
    try:
        workload.open()
        _require_data(workload, options, version)
    except AlgoPerfError as caught:
        error = caught
    (failed,) = ranks.maximum(float(error is not None))
    if error is not None:
        raise error
    if failed:
        raise DataError("Another rank cannot open the data; its message is above.")


def _require_data(workload: Workload, options: RunOptions, version: BenchmarkVersion) -> None:
    """Raises `DataError` where the version has data of its own and the workload was opened on others."""
    wanted, found = version.data.get(workload.spec.dataset), workload.generation
    if wanted is not None and found != wanted:
        raise DataError(
            f"{workload.folder()} holds {found or 'other data'}; version {version.name} has {wanted}. "
            f"Make them: algoperf data generate --version {options.version} --out DIR"
        )


def _train(parts: Parts, saved: Mapping[str, Any] | None, stop: StopRequest) -> int:
    """Builds and runs the trial, and writes how it ended."""
    options, record, guards = parts.options, parts.record, parts.guards
    trial: Trial | None = None
    laps: dict[str, float] = {}
    error: BaseException | None = None
    status = Status.HARNESS_ERROR
    console = Console(parts) if record is not None else None
    trackers = Trackers(options, parts.place.directory) if record is not None else None
    try:
        trial, laps = build_trial(
            parts,
            saved,
            stop=stop,
            report=console.evaluation if console else _ignore,
            track=trackers.log if trackers else _ignore,
        )
        if console is not None:
            console.started(trial, laps)
        status = trial.run()
        guards.finish()
        validity = trial.validity()
    except BaseException as caught:  # noqa: BLE001 - every end has a name; it is recorded and told
        error, status = caught, status_of(caught)
        guards.finish()
        validity = guards.section()
    if trial is not None:
        trial.stream.close()
    phase = trial.phase if trial is not None else Phase.SETUP if record is None else record.heartbeat.phase
    if isinstance(error, UsageError) and trial is None and parts.place.fresh:
        if record is not None:  # a mistake in the command leaves nothing behind
            record.close()
            remove(parts.place.directory, options.out)
        raise error
    if error is not None:
        status, phase, error = _note_error(parts, status, phase, error)
    if record is not None and console is not None and trackers is not None:
        trackers.close()
        _close(parts, record, trial, status, phase, laps, error, validity)
        console.validity(validity)
        console.ended(status, trial, error)
    return exit_code(status, error)


def _meta_data(parts: Parts, environment: Mapping[str, Any]) -> dict[str, Any]:
    seed = trial_seed(parts.place.run_seed, parts.options)
    terms = parts.version.terms(parts.options.workload)
    return hardware.meta_data(environment, spec=parts.workload.spec, terms=terms, seed=seed)


def _ignore(*_: object) -> None:
    pass


def status_of(error: BaseException) -> Status:
    """The name of an error in the table of how a trial can end."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Status.OUT_OF_MEMORY
    if isinstance(error, DivergedError):
        return Status.DIVERGED
    if isinstance(error, Preempted | KeyboardInterrupt):
        return Status.PREEMPTED
    if isinstance(error, DataError):
        return Status.DATA_ERROR
    if isinstance(error, SubmissionError | UsageError):  # a wrong hyperparameter shows when the optimizer is built
        return Status.SUBMISSION_ERROR
    return Status.HARNESS_ERROR


def exit_code(status: Status, error: BaseException | None) -> int:
    """0 where the trial ran to an end of its own; else that of the error, or of what the status stands for."""
    if error is None:
        return 0
    kinds = {
        Status.PREEMPTED: Preempted,
        Status.DIVERGED: DivergedError,
        Status.DATA_ERROR: DataError,
        Status.SUBMISSION_ERROR: SubmissionError,
        Status.OUT_OF_MEMORY: SubmissionError,
    }
    return type(error).exit_code if isinstance(error, UsageError) else kinds.get(status, AlgoPerfError).exit_code


def _note_error(
    parts: Parts, status: Status, phase: Phase, error: BaseException
) -> tuple[Status, Phase, BaseException]:
    """Writes this rank's traceback; on rank 0, finds out whether another rank's failure was the cause of this one."""
    directory, rank = parts.place.directory, parts.ranks.rank
    (directory / f"error_rank_{rank}.log").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    if rank != 0:
        cause: dict[str, Any] = {"status": status.value, "phase": int(phase), "message": str(error)}
        write_json(directory / f"error_rank_{rank}.json", cause)
        return status, phase, error
    if parts.ranks.world_size == 1 or not _lost_a_peer(error):
        return status, phase, error
    deadline = time.monotonic() + PEER_ERROR_SECONDS
    while time.monotonic() < deadline:
        for path in sorted(directory.glob("error_rank_*.json")):
            cause = read_json(path)
            if Status(cause["status"]) is not Status.HARNESS_ERROR:
                told = f"Rank {path.stem.rpartition('_')[2]}: {cause['message']}"
                return Status(cause["status"]), Phase(cause["phase"]), SubmissionError(told)
        time.sleep(0.1)
    return status, phase, error


def _lost_a_peer(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, dist.DistError) or "Connection closed by peer" in text or "gloo" in text.lower():
            return True
        seen = seen.__cause__
    return False


def _close(
    parts: Parts,
    record: TrialRecord,
    trial: Trial | None,
    status: Status,
    phase: Phase,
    laps: Mapping[str, float],
    error: BaseException | None,
    validity: Mapping[str, Any],
) -> None:
    """Writes the final `trial.json`, and removes checkpoints that nobody will need."""
    values: dict[str, Any] = {
        "setup_seconds": dict(laps),
        "ended": time.time(),
        "kernels": {"choice": parts.options.kernels, "used": list(kernels.used())},
    }
    if trial is not None:
        values.update(trial.summary())
    if error is not None:
        values["error"] = {
            "type": type(error).__name__,
            "message": str(error),
            "phase": phase.name.lower(),
            "traceback": f"error_rank_{parts.ranks.rank}.log",
        }
    void = is_void(status, phase) or not validity["valid"]
    record.update(status=status.value, void=void, validity=validity, **values)
    record.heartbeat.enter(Phase.FINISHED, trial.state.step if trial is not None else 0)
    record.close()
    if not void:  # else it is to be run again, and may go on from there
        checkpoint.remove_all(record.directory)
