"""From options to a trial that is ready to run: directory, seeds, workload, model, algorithm, checkpoint."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from algoperf_torch import __version__
from algoperf_torch.data.stream import TrainStream
from algoperf_torch.errors import AlgoPerfError, HyperparameterError, UsageError
from algoperf_torch.optim.context import Engine, OfficialFacts, TrainingContext
from algoperf_torch.runner import checkpoint
from algoperf_torch.runner.clock import make_clock
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.engine import ModelEngine, build_engine, seeded_model, warm_up
from algoperf_torch.runner.hardware import preflight
from algoperf_torch.runner.options import RunOptions, budget_of
from algoperf_torch.runner.record import SCHEMA_VERSION, TrialRecord, read_json, trial_directory
from algoperf_torch.runner.search_space import load_search_space, parse_hparams, parse_search_space, study_points
from algoperf_torch.runner.seeds import TrialSeeds, draw_run_seed, draw_trial_seed, step_seeds
from algoperf_torch.runner.status import Phase, Status
from algoperf_torch.runner.submissions import Submission
from algoperf_torch.runner.trial import Rules, Trial, blame
from algoperf_torch.runner.validity import Guards
from algoperf_torch.spec import Hyperparameters, Ruleset, Split
from algoperf_torch.versions import BenchmarkVersion
from algoperf_torch.workloads.base import Workload
from algoperf_torch.workloads.layers import dropout_rates, restore_dropout_rates, set_batch_norm_update, set_dropout
from algoperf_torch.workloads.roles import parameter_roles, reference_roles

MINIMUM_FREE_BYTES = 64 * 2**20  # logs of a long trial; a checkpoint that finds no room says so itself
SHARED_FILES_SECONDS = 10.0  # what a network file system gets to show a new directory to the other hosts


@dataclass(frozen=True)
class Place:
    """Where the trial writes and what it found there; equal on all ranks."""

    directory: Path
    run_seed: int
    checkpoint: Path | None
    fresh: bool  # whether the directory was empty


def hyperparameters_of(options: RunOptions, submission: Submission, version: BenchmarkVersion) -> Hyperparameters:
    """The point of this trial: from `--hparams`, else number `--trial` of the search space; none when self-tuning.

    Raises `HyperparameterError` where the space has fewer points than the trial's number.
    """
    if options.ruleset is Ruleset.SELF:
        return Hyperparameters()
    if options.hparams:
        return parse_hparams(options.hparams)
    if options.search_space is not None:
        space = load_search_space(options.search_space)
    elif submission.search_space is not None:
        space = parse_search_space(json.dumps(submission.search_space), f"of {submission.name}")
    else:
        return Hyperparameters()
    if version.tuning.points == "partitioned" and options.seed is None:
        raise HyperparameterError(f"Version {version.name} draws the points of its studies apart. Give a --seed.")
    found = study_points(
        space,
        draw=version.tuning.points,
        study=options.study,
        studies=version.tuning.studies,
        trials=max(version.num_trials(options.ruleset), options.trial),
        seed=options.seed or 0,
    )
    if options.trial > len(found):
        raise HyperparameterError(f"--trial {options.trial}: the search space has only {len(found)} points.")
    return found[options.trial - 1]


def claim_directory(options: RunOptions, submission: str) -> Place:
    """Takes the trial's directory for this process; called on rank 0 only.

    Raises `UsageError` where another process runs the trial, where it is finished, or where it cannot be written.
    """
    preflight(options.out, MINIMUM_FREE_BYTES)
    directory = trial_directory(options.out, submission, options.study, options.workload, options.trial)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"Cannot write to {directory}: {error.strerror or error}. Choose another --out.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until this process ends
    except OSError as error:
        raise UsageError(f"{directory} is in use: this trial is running in another process.") from error
    if options.overwrite:
        clear(directory)
    fresh = {path.name for path in directory.iterdir()} == {".lock"}
    run_seed = options.seed if options.seed is not None else draw_run_seed()
    saved = checkpoint.latest(directory)
    if (directory / "trial.json").exists():
        old = read_json(directory / "trial.json")
        status = old.get("status")
        if status not in (Status.RUNNING, Status.PREEMPTED) and not old.get("void"):
            raise UsageError(
                f"{directory} already holds a finished trial ({status}). Use --overwrite, or another --out."
            )
        if options.seed is None:
            run_seed = int(old["seeds"]["run"])
        if not (options.resume and saved):
            if (directory / "eval_measurements.csv").exists():
                raise UsageError(
                    f"{directory} holds an unfinished trial, and nothing to go on from. Use --overwrite to start afresh."
                )
            clear(directory)  # it ended before anything was measured
    return Place(directory, run_seed, saved if options.resume else None, fresh)


def clear(directory: Path) -> None:
    """Removes everything from a trial's directory but the lock."""
    for path in directory.iterdir():
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove(directory: Path, out: Path) -> None:
    """Removes the directory of a trial that never began, and those above it that this leaves empty."""
    clear(directory)
    (directory / ".lock").unlink()
    for path in (directory, *directory.parents):
        if path == out.parent or any(path.iterdir()):
            break
        path.rmdir()


def share_place(options: RunOptions, submission: str, ranks: Ranks) -> Place:
    """`claim_directory` on rank 0, its outcome on every rank."""
    message: dict[str, Any] = {}
    if ranks.is_main:
        try:
            place = claim_directory(options, submission)
            message = {
                "directory": str(place.directory),
                "run_seed": place.run_seed,
                "checkpoint": str(place.checkpoint) if place.checkpoint else None,
                "fresh": place.fresh,
            }
        except AlgoPerfError as error:
            message = {"error": str(error)}
    message = json.loads(ranks.broadcast_text(json.dumps(message)))
    if "error" in message:
        raise UsageError(message["error"])
    _require_shared(Path(message["directory"]), ranks)
    saved = message["checkpoint"]
    return Place(Path(message["directory"]), message["run_seed"], Path(saved) if saved else None, message["fresh"])


def _require_shared(directory: Path, ranks: Ranks) -> None:
    """Raises `UsageError` on all ranks where one of them, on another host, does not see the trial's directory."""
    deadline = time.monotonic() + SHARED_FILES_SECONDS
    while not (seen := directory.is_dir()) and time.monotonic() < deadline:
        time.sleep(0.2)
    (missing,) = ranks.maximum(0.0 if seen else float(ranks.rank))
    if missing:
        raise UsageError(
            f"Rank {missing:.0f} does not see {directory}, which rank 0 has made. "
            "Choose an --out that all hosts share, by an absolute path."
        )


def batch_size_of(workload: Workload, batch_sizes: Mapping[str, int], ranks: Ranks, micro_batch: int | None) -> int:
    """The submission's global batch size for this workload, else for its base, else the reference size.

    Raises `UsageError` where it cannot be divided over the ranks or into micro-batches.
    """
    spec = workload.spec
    size = batch_sizes.get(spec.name, batch_sizes.get(spec.base, spec.batch_size))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UsageError(
            f"The submission's batch size for {spec.name} is {size!r}. It must be a whole number of at least 1."
        )
    if size % ranks.world_size:
        raise UsageError(
            f"The global batch of {size} examples is not divisible by {ranks.world_size} ranks. "
            "Use another number of ranks, or another batch size."
        )
    if micro_batch is not None and (size // ranks.world_size) % micro_batch:
        raise UsageError(
            f"--micro-batch {micro_batch} does not divide the {size // ranks.world_size} examples of a rank."
        )
    return size


@dataclass(frozen=True)
class Parts:
    """What `build_trial` is given."""

    options: RunOptions
    version: BenchmarkVersion
    workload: Workload
    submission: Submission
    hyperparameters: Hyperparameters
    global_batch_size: int
    ranks: Ranks
    place: Place
    guards: Guards
    record: TrialRecord | None = None  # on rank 0, once nothing can be wrong with the command any more


def build_trial(
    parts: Parts, saved: Mapping[str, Any] | None = None, **callbacks: Any
) -> tuple[Trial, dict[str, float]]:
    """The trial, restored from the checkpoint `saved` if there is one, and the seconds that each part of the set-up took."""
    options, ranks, workload, submission = parts.options, parts.ranks, parts.workload, parts.submission
    seconds = Stopwatch()
    seeds = TrialSeeds.derive(trial_seed(parts.place.run_seed, options), options.ruleset)
    size = parts.global_batch_size
    terms = parts.version.terms(options.workload)
    rules = Rules(
        protocol=parts.version.protocol,
        terms=terms,
        budget=budget_of(options, parts.version),
        eval_period=options.eval_period or terms.eval_period_seconds,
        eval_batch_size=terms.eval_batch_size,
        global_batch_size=size,
        eval_seed=seeds.data[1],
    )
    make_batch = workload.train_batches(
        seed=seeds.data[0], global_batch_size=size, rank=ranks.rank, world_size=ranks.world_size
    )
    stream = TrainStream(make_batch, device=ranks.device, depth=workload.prefetch_depth, finish=workload.finish_batch)
    engine = build_engine(
        workload,
        ranks,
        seed=seeds.model[0],
        global_batch_size=size,
        batch_norm_groups=parts.version.protocol.batch_norm_groups,
        compiled=options.compile,
    )
    clock = make_clock(options.clock, ranks.synchronize)
    parts.guards.watch(engine.model, workload, stream, clock)
    seconds.lap("model")
    context = TrainingContext(
        step_hint=rules.budget.steps or terms.step_hint,
        budget_seconds=rules.budget.seconds,
        loss_kind=workload.spec.loss,
        target=terms.validation,
        model=engine.model,
        parameters=parameter_roles(engine.model),
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        generator=torch.Generator(ranks.device).manual_seed(seeds.optimizer[0]),
        data_generator=torch.Generator().manual_seed(seeds.data[1]),
        engine=Engine(
            forward_compiled=engine.forward_compiled,
            forward_eager=engine.forward_eager,
            loss=engine.loss,
            elapsed=lambda: clock.elapsed(context.step),
            build_model=lambda seed: seeded_model(workload, seed).to(ranks.device),
            set_batch_norm_update=lambda update: set_batch_norm_update(engine.model, update),
            set_dropout=_dropout_switch(engine),
            no_sync=engine.no_sync,
            process_group=torch.distributed.group.WORLD if ranks.world_size > 1 else None,
            official=_official_facts(parts, engine, rules, seeds),
        ),
        num_microbatches=size // ranks.world_size // options.micro_batch if options.micro_batch else 1,
    )
    torch.manual_seed(seeds.loop[0] + ranks.rank)  # dropout masks differ between ranks
    if parts.record is not None:
        parts.record.heartbeat.enter(Phase.INIT, 0)
    try:
        with parts.guards.submission("initialisation"):
            algorithm = submission.algorithm.from_context(engine.model, parts.hyperparameters, context)
    except BaseException as error:
        raise blame(error, "its construction") from error
    if parts.record is not None:
        parts.record.heartbeat.enter(Phase.SETUP, 0)
    seconds.lap("init")
    parts.guards.built(algorithm, context)
    if options.compile and parts.version.protocol.compile_policy == "prewarmed":
        warm_up(
            engine,
            make_batch(0),
            ranks,
            eval_batch_size=rules.eval_batch_size,
            first_part=lambda batch: next(context.microbatches(batch, context.num_microbatches)),
            label_smoothing=algorithm.label_smoothing,
        )
    seconds.lap("warm_up")
    trial = Trial(
        rules=rules,
        ranks=ranks,
        engine=engine,
        context=context,
        algorithm=algorithm,
        stream=stream,
        clock=clock,
        guards=parts.guards,
        identity=identity(parts),
        record=parts.record,
        saves_checkpoints=options.checkpoint,
        **callbacks,
    )
    if saved is not None:
        trial.restore(saved)
    seconds.lap("restore")
    return trial, seconds.laps


def _dropout_switch(engine: ModelEngine) -> Callable[[float | None], None]:
    own_rates = dropout_rates(engine.model)

    def switch(rate: float | None) -> None:
        restore_dropout_rates(engine.model, own_rates) if rate is None else set_dropout(engine.model, rate)

    return switch


def _official_facts(parts: Parts, engine: ModelEngine, rules: Rules, seeds: TrialSeeds) -> OfficialFacts:
    spec, options = parts.workload.spec, parts.options
    budget = rules.budget.seconds / parts.version.budget_multiplier(options.ruleset)
    return OfficialFacts(
        container=engine.training,
        parameter_types=reference_roles(name for name, _ in engine.training.named_parameters()),
        num_examples={split: spec.num_examples(split) for split in Split},
        eval_batch_size=rules.eval_batch_size or spec.eval_batch_size,
        eval_period_seconds=rules.eval_period,
        budget_seconds=budget if math.isfinite(budget) else rules.terms.budget_seconds,  # one in steps has no seconds
        test_target=rules.terms.test,
        optimizer_seed=seeds.optimizer,
        step_seeds=lambda step: step_seeds(seeds.loop, step, 4),
    )


def trial_seed(run_seed: int, options: RunOptions) -> int:
    return draw_trial_seed(run_seed, workload=options.workload, study=options.study, trial=options.trial)


def identity(parts: Parts) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this trial's."""
    return {
        "workload": parts.options.workload,
        "model_scale": parts.options.model_scale,
        "version": parts.version.name,
        "ruleset": parts.options.ruleset.value,
        "submission": parts.submission.name,
        "source digest": parts.submission.digest,
        "hyperparameters": json.dumps(dict(parts.hyperparameters), default=str),
        "run seed": parts.place.run_seed,
        "study": parts.options.study,
        "trial": parts.options.trial,
        "number of ranks": parts.ranks.world_size,
        "device": parts.ranks.device.type,
        "global batch size": parts.global_batch_size,
        "clock": parts.options.clock,
        "choice of kernels": parts.options.kernels,
    }


def first_summary(parts: Parts, environment: Mapping[str, Any], hardware: list[dict[str, Any]]) -> dict[str, Any]:
    """`trial.json` as it stands before anything is built: who runs what, where, with which seeds."""
    options, process = parts.options, psutil.Process()
    budget = budget_of(options, parts.version)
    seed = trial_seed(parts.place.run_seed, options)
    seeds = TrialSeeds.derive(seed, options.ruleset)
    return {
        "schema_version": SCHEMA_VERSION,
        "package_version": __version__,
        "status": Status.RUNNING.value,
        "void": True,
        "workload": options.workload,
        "version": parts.version.name,
        "ruleset": options.ruleset.value,
        "study": options.study,
        "trial": options.trial,
        "submission": {
            "name": parts.submission.name,
            "reference": parts.submission.reference,
            "digest": parts.submission.digest,
            "sources": [str(path) for path in parts.submission.sources],
        },
        "hyperparameters": dict(parts.hyperparameters),
        "seeds": {"run": parts.place.run_seed, "trial": seed, **{k: list(v) for k, v in seeds._asdict().items()}},
        "options": json.loads(json.dumps(asdict(options), default=str)),
        "synthetic_data": parts.workload.synthetic_data,
        "compile_policy": parts.version.protocol.compile_policy if options.compile else "off",
        "kernels": {"choice": options.kernels, "used": []},
        "budget": {
            "seconds": budget.seconds if math.isfinite(budget.seconds) else None,
            "steps": budget.steps,
            "changed": options.budget is not None,
        },
        "clock": options.clock,
        "supervised": options.supervised,
        "process": {
            "host": socket.gethostname(),
            "pid": process.pid,
            "started": process.create_time(),
            "world_size": parts.ranks.world_size,
        },
        "started": time.time(),
        "environment": dict(environment),
        "hardware_check": hardware,
    }


class Stopwatch:
    """Seconds of consecutive parts of the set-up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
