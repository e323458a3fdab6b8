"""Guards: what could have spoiled a trial's number, checked while its clock stands.

The runner calls, in this order::

    guards = Guards(device)
    guards.arm(workload.evaluation_files())       # before the submission's code is imported
    with guards.submission("import"):             # ... its import
    guards.watch(model, workload, stream, clock)  # what the harness built
    with guards.submission("initialisation"):     # ... its construction
    guards.built(algorithm, context)
    loop:  guards.harness_done();  clock.start();  guards.clock_starts()
           steps, each followed by guards.step_done()
           guards.clock_stops();  clock.stop()
           guards.interval(facts);  guards.before_evaluation(step);  evaluate;  guards.after_evaluation(step)
    guards.finish()                               # then `section()` for trial.json

A guard that fires adds a `Flag`: `void` where the number cannot stand, `warn` where somebody should look. Guards catch
mistakes and naive cheats: code in the same process can defeat any of them. Official validity rests on a supervised
rerun and on the digest of the submitted source.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from algoperf_torch.data.stream import TrainStream
from algoperf_torch.errors import UnknownNameError
from algoperf_torch.kernels import registry as kernels
from algoperf_torch.optim.base import TrainingAlgorithm
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.runner import probes
from algoperf_torch.runner.hardware import (
    SEVERE_THROTTLING,
    Telemetry,
    calibrate,
    disk_read_bytes,
    environment,
    precision_state,
    thread_state,
)
from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.base import Workload

Severity = Literal["void", "warn"]
MOST_FLAGS = {"void": 5, "warn": 1}  # of one guard

GUARDS: dict[str, str] = {  # every guard by name, and what it watches
    "identity": "functions of the clock, of torch and of the harness are what they were",
    "clock": "charged time is not less than an independent clock says",
    "weights_digest": "evaluation leaves the weights and running statistics as they were",
    "state_digest": "the algorithm's state does not change during an evaluation",
    "initial_weights": "building the algorithm leaves the model as it was initialised",
    "constants": "buffers that are no running statistics keep their values",
    "structure": "modules, parameter shapes and dtypes, and forward methods are the harness's",
    "trainable": "no parameter is frozen",
    "hooks": "no forward hook or dispatch mode is active during an evaluation",
    "finite": "weights are finite",
    "stream": "no batch is drawn during an evaluation",
    "random_state": "an evaluation draws no random numbers",
    "precision": "numerical flags, default dtype and gradient mode are the harness's",
    "environment": "environment variables that matter keep their values",
    "processors": "numbers of threads, processor affinity and priority are the harness's",
    "threads": "no thread of the submission works while the clock stands",
    "processes": "no child process of the submission works while the clock stands",
    "quiet": "nothing in this process works while the clock stands",
    "device": "the device is idle while the clock stands",
    "files": "evaluation files are opened by the evaluator only",
    "spawned": "the submission starts no process",
    "network": "the submission opens no connection",
    "initialisation": "import and construction, which are not charged, stay within limits",
    "passes": "passes through the model are counted, and are not hundreds a step",
    "recompilation": "nothing is compiled over and over",
    "data_stall": "the step does not wait for data",
    "step_time": "steps take the same time over the whole run",
    "cold_cache": "the data come from memory where the version says so",
    "throttling": "the device runs at its clocks",
    "calibration": "the machine is as fast at the end as at the start",
}


@dataclass(frozen=True)
class Limits:
    """Above these a guard fires."""

    clock_lag: float = 0.005  # fraction of an interval that the charged time may lag behind, beside clock_slack
    clock_slack: float = 0.01  # seconds
    init_seconds: float = 300.0  # import and construction together
    init_compile_seconds: float = 30.0
    init_passes: int = 0
    passes_per_step: float = 32.0
    recompilations: int = 8  # after the first interval; the compiler itself gives up at 8
    stall_fraction: float = 0.03
    stall_seconds: float = 0.1  # waits below are start-up, not a stall
    step_time_ratio: float = 2.0  # between an interval's mean step time and the fastest interval's
    step_time_seconds: float = 1.0  # shortest interval that is compared
    cold_bytes: int = 64 * 2**20
    calibration_ratio: float = 1.5
    idle_fraction: float = 0.03  # of a window in which nothing should run
    foreign_seconds: float = 0.002  # processor time of a foreign worker during an evaluation
    foreign_fraction: float = 0.01
    device_seconds: float = 0.002


@dataclass(frozen=True)
class Flag:
    """A guard that fired."""

    name: str
    reason: str
    step: int
    severity: Severity
    rank: int = 0
    count: int = 1  # findings of this guard that this flag stands for: what lasts is not told at every evaluation


@dataclass(frozen=True, kw_only=True)
class IntervalFacts:
    """What the runner knows when the clock stops: totals since the start of the trial."""

    step: int
    submission_seconds: float
    wait_seconds: float  # of the submission's time, spent in the training stream
    samples: int  # examples drawn, globally
    forward_passes: int
    backward_passes: int


@dataclass
class _Standing:
    """What an evaluation must leave as it is."""

    weights: probes.Digest
    state: probes.Digest
    random: int
    position: int


@dataclass
class _Workers:
    """Who else was there when the clock stopped, and how much they had worked by then."""

    threads: dict[str, probes.Worker]
    children: dict[str, probes.Worker]
    graphs: int
    since: float


@dataclass
class _Totals:
    """What a checkpoint carries over: all plain values."""

    flags: list[dict[str, Any]] = field(default_factory=list)
    intervals: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    setup: dict[str, Any] = field(default_factory=dict)
    compilations: dict[str, dict[str, Any]] = field(default_factory=dict)
    calibration: list[float] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


class Guards:
    """All guards of one rank of one trial.

    Args:
        device: the rank's device.
        rank: noted in the flags.
        real_clock: False under an injected clock, whose seconds no other clock confirms.
        page_cache: the version's policy; `cold_cache` watches only under `warm`.
        audit: watch files, processes and connections through the interpreter's audit hook. It stays for the life of
            the process, so only a process that runs a single trial should have it.
        disabled: names of guards that do nothing (for tests; recorded in the section).

    Raises `UnknownNameError` for a name in `disabled` that is no guard.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        rank: int = 0,
        real_clock: bool = True,
        page_cache: str = "any",
        audit: bool = False,
        disabled: Iterable[str] = (),
        limits: Limits = Limits(),
    ) -> None:
        self.disabled = frozenset(disabled)
        for name in self.disabled:
            if name not in GUARDS:
                raise UnknownNameError("guard", name, GUARDS)
        self._device = device
        self._rank = rank
        self._real_clock = real_clock
        self._page_cache = page_cache
        self._audit = audit
        self._limits = limits
        self._now = probes.reference_clock()
        self._compiler = probes.CompileMonitor()
        self._trail = probes.AuditTrail()
        self._totals = _Totals()
        self._step_times = probes.StepTimes(device)
        self.step_done = self._step_times.mark  # to be called after every step, while the clock runs
        self._telemetry: Telemetry | None = None
        self._running_since: float | None = None
        self._independent_seconds = 0.0  # since the last interval
        self._standing: _Standing | None = None
        self._weights_in_products = 0  # weights that every example is multiplied with: a floor of a step's arithmetic
        self._disk_read = disk_read_bytes()
        self._spins = os.environ.get("OMP_WAIT_POLICY", "").lower() == "active" or "GOMP_SPINCOUNT" in os.environ
        self.flags: list[Flag] = []
        self.weights_are_finite = True  # at the last evaluation, on this rank

    # ---------------------------------------------------------------- set-up

    def arm(self, evaluation_files: Iterable[Path] = ()) -> None:
        """Remembers how things stand before any code of the submission runs."""
        kernels.load()  # an operation that is registered later counts as tampering
        self._identities = probes.Identities()
        self._precision = precision_state()
        self._environment = environment()
        self._processors = thread_state()
        self._global_hooks = probes.global_hooks()
        self._known_threads = probes.python_threads()
        self._known_children = probes.child_processes()
        self._trail.evaluation_files = frozenset(os.path.realpath(path) for path in evaluation_files)
        self._held_files = probes.mapped_files(self._trail.evaluation_files)
        self._telemetry = Telemetry(self._device)
        self._totals.calibration = [calibrate(self._device)]
        if self._audit:
            probes.install(self._trail)

    @contextmanager
    def submission(self, stage: Literal["import", "initialisation"]) -> Iterator[None]:
        """Around code of the submission that is not charged: its seconds and compilations are recorded."""
        held = probes.mapped_files(self._trail.evaluation_files)
        self._enter(stage)
        started = self._now()
        try:
            yield
        finally:
            self._totals.setup[f"{stage}_seconds"] = self._now() - started
            self._enter("harness")
            self._held_files = probes.mapped_files(self._trail.evaluation_files)
            self._trail.opened += sorted(self._held_files - held)

    def _enter(self, stage: str) -> None:
        self._compiler.attach()
        self._compiler.stage = stage
        self._trail.active = stage != "harness"

    def watch(self, model: nn.Module, workload: Workload, stream: TrainStream, *others: object) -> None:
        """Remembers what the harness built, before the submission gets to see any of it."""
        self._model = model
        self._stream = stream
        self._structure = probes.Structure.of(model)
        self._initial = probes.digest(probes.learned(model))
        self._constants = probes.digest(probes.constants(model))
        for name, module in model.named_modules():
            self._identities.add_object(f"model.{name}" if name else "model", module)
        for value in (workload, stream, *others):
            self._identities.add_object(type(value).__name__.lower(), value)

    def built(self, algorithm: TrainingAlgorithm, context: TrainingContext) -> None:
        """Judges what importing and constructing the submission did."""
        self._algorithm = algorithm
        self._microbatches = context.num_microbatches
        self._weights_in_products = sum(
            parameter.numel()
            for parameter, known in zip(self._model.parameters(), context.parameters, strict=True)
            if parameter.dim() > 1 and (known.is_output or known.role is not ParamRole.EMBEDDING)
        )
        setup, limits = self._totals.setup, self._limits
        counts = [self._compiler.counts.get(stage, probes.CompileCounts()) for stage in ("import", "initialisation")]
        seconds = setup.get("import_seconds", 0.0) + setup.get("initialisation_seconds", 0.0)
        compile_seconds = sum(count.seconds for count in counts)
        passes = context.passes.forward + context.passes.backward
        setup |= {"compile_seconds": compile_seconds, "passes": passes, "graphs": sum(count.graphs for count in counts)}
        for what, value, limit in (
            ("seconds of import and construction", seconds, limits.init_seconds),
            ("seconds of compilation before the clock", compile_seconds, limits.init_compile_seconds),
            ("passes through the model before the clock", passes, limits.init_passes),
        ):
            if value > limit:
                self._flag("initialisation", f"{value:.6g} {what}; the limit is {limit:g}", 0, "warn")
        if self._on("initial_weights") and (
            names := probes.changed(self._initial, probes.digest(probes.learned(self._model)))
        ):
            self._flag("initial_weights", f"construction changed {_some(names)} of the model", 0, "void")
        self._check_trail(0)

    # ---------------------------------------------------------------- the clock

    def harness_done(self) -> None:
        """Some time before the clock starts: evaluation data that are open by now were opened by the harness."""
        self._held_files = probes.mapped_files(self._trail.evaluation_files)

    def clock_starts(self) -> None:
        """Right after the clock has started."""
        self._enter("training")
        self._running_since = self._now()
        self._step_times.start()

    def clock_stops(self) -> None:
        """Right before the clock stops."""
        if self._running_since is not None:
            self._independent_seconds += self._now() - self._running_since
            self._running_since = None
        self._enter("harness")

    def interval(self, facts: IntervalFacts) -> None:
        """Everything that is checked when the clock stands, before the evaluation."""
        step = facts.step
        self._workers = _Workers(
            threads={worker.name: worker for worker in self._foreign_threads()},
            children={worker.name: worker for worker in self._foreign_children()},
            graphs=self._graphs(),
            since=self._now(),
        )
        row = self._measure(facts)
        self._judge_times(row, facts)
        self._check_identity(step)
        self._check_settings(step)
        self._check_structure(step)
        self._check_trail(step)
        self._check_quiet(step)
        self._totals.intervals.append(row)
        self._totals.facts = asdict(facts)

    def _measure(self, facts: IntervalFacts) -> dict[str, Any]:
        """The interval's own numbers, from the totals."""
        past = self._totals.facts
        steps = facts.step - past.get("step", 0)
        seconds = facts.submission_seconds - past.get("submission_seconds", 0.0)
        compiled = self._compiler.counts.get("training", probes.CompileCounts())
        old = self._totals.compilations.get("training", {})
        compile_seconds = compiled.seconds - old.get("seconds", 0.0)
        waited = past.get("wait_seconds", 0.0)  # a resumed process counts from zero
        disk = disk_read_bytes()
        row: dict[str, Any] = {
            "step": facts.step,
            "steps": steps,
            "submission_seconds": seconds,
            "independent_seconds": self._independent_seconds if self._real_clock else None,
            "wait_seconds": facts.wait_seconds - waited if facts.wait_seconds >= waited else facts.wait_seconds,
            "samples": facts.samples - past.get("samples", 0),
            "forward_passes": facts.forward_passes - past.get("forward_passes", 0),
            "backward_passes": facts.backward_passes - past.get("backward_passes", 0),
            "compile_seconds": compile_seconds,
            "compilations": compiled.graphs - old.get("graphs", 0),
            "recompilations": compiled.recompilations - old.get("recompilations", 0),
            "mean_step_seconds": max(seconds - compile_seconds, 0.0) / steps if steps else None,
            "disk_read_bytes": None if disk is None or self._disk_read is None else disk - self._disk_read,
        }
        times = self._step_times.read()
        if len(times) > 1:
            row["median_step_seconds"], row["slowest_step_seconds"] = statistics.median(times), max(times)
            row["step_variation"] = statistics.stdev(times) / statistics.fmean(times)
        if self._telemetry is not None:
            row["telemetry"] = self._telemetry.sample()
        row["threads"], row["children"] = probes.census()
        self._totals.compilations["training"] = asdict(compiled)
        self._disk_read = disk
        self._independent_seconds = 0.0
        return row

    def _judge_times(self, row: dict[str, Any], facts: IntervalFacts) -> None:
        limits, step, steps = self._limits, facts.step, row["steps"]
        seconds, lived = row["submission_seconds"], row["independent_seconds"]
        if lived is not None and seconds < lived * (1 - limits.clock_lag) - limits.clock_slack:
            self._flag("clock", f"{seconds:.3f} s were charged while {lived:.3f} s went by", step, "void")
        if self._real_clock and row["wait_seconds"] > max(limits.stall_fraction * seconds, limits.stall_seconds):
            share = row["wait_seconds"] / seconds if seconds else 1.0
            self._flag("data_stall", f"{share:.1%} of the interval went by waiting for data", step, "warn")
        if steps and not row["forward_passes"]:
            self._flag("passes", f"{steps} steps without a pass that the context counted", step, "warn")
        passes = row["backward_passes"] / steps if steps else 0.0
        if passes > limits.passes_per_step * self._microbatches:
            self._flag("passes", f"{passes:.0f} backward passes a step: a step hides many", step, "warn")
        if self._totals.intervals and row["recompilations"] > limits.recompilations:
            self._flag("recompilation", f"{row['recompilations']} recompilations in an interval", step, "warn")
        read = row["disk_read_bytes"]
        if self._page_cache == "warm" and read is not None and read > limits.cold_bytes:
            self._flag("cold_cache", f"{read / 2**20:.0f} MiB were read from disk under a warm policy", step, "warn")
        reasons = SEVERE_THROTTLING.intersection(row.get("telemetry", {}).get("throttle_reasons", ()))
        if reasons:
            self._flag("throttling", f"the device throttles: {', '.join(sorted(reasons))}", step, "warn")
        self._judge_step_time(row, step)

    def _judge_step_time(self, row: dict[str, Any], step: int) -> None:
        """Compares intervals of the same work per step: an algorithm may well change what a step does."""

        def comparable(other: Mapping[str, Any]) -> bool:
            return bool(other["submission_seconds"] >= self._limits.step_time_seconds and other["steps"] > 1)

        def work(other: Mapping[str, Any]) -> tuple[float, ...]:
            keys = ("samples", "forward_passes", "backward_passes")
            return tuple(round(other[key] / other["steps"], 1) for key in keys)

        if self._real_clock and comparable(row):
            rest = [other for other in self._totals.intervals if comparable(other) and work(other) == work(row)]
            means = [other["mean_step_seconds"] for other in [*rest, row]]
            if max(means) > self._limits.step_time_ratio * min(means):
                reason = f"a step took {min(means):.3g} s in one interval and {max(means):.3g} s in another"
                self._flag("step_time", reason, step, "warn")

    # ---------------------------------------------------------------- single checks

    def _check_identity(self, step: int) -> None:
        if not self._on("identity"):
            return
        names = self._identities.changes()
        if not self._compiler.intact:
            names.append("the compiler's callbacks")
        if names:
            self._flag("identity", f"replaced: {_some(names)}", step, "void")

    def _check_settings(self, step: int) -> None:
        for name, before, now, severity in (
            ("precision", self._precision, precision_state(), "void"),
            ("environment", self._environment, environment(), "warn"),
            ("processors", self._processors, thread_state(), "void"),
        ):
            different = [
                f"{key} {before.get(key)!r} -> {now.get(key)!r}"
                for key in sorted({**before, **now})
                if before.get(key) != now.get(key)
            ]
            if different:
                self._flag(name, f"changed: {_some(different)}", step, "void" if severity == "void" else "warn")

    def _check_structure(self, step: int) -> None:
        now, then = probes.Structure.of(self._model), self._structure
        names = [
            *_differences(then.modules, now.modules),
            *_differences(then.parameters, now.parameters),
        ]
        if names:
            self._flag("structure", f"the model changed: {_some(names)}", step, "void")
        frozen = _differences(then.trainable, now.trainable)
        if frozen and not names:
            self._flag("trainable", f"requires_grad changed: {_some(frozen)}", step, "warn")
        hooked = _differences(then.hooks, now.hooks)
        if probes.global_hooks() != self._global_hooks:
            hooked.append("a hook on all modules, or a dispatch mode")
        if hooked:
            self._flag("hooks", f"forward hooks on {_some(hooked)}; remove them in prepare_for_eval", step, "void")
        if self._on("constants"):
            names = probes.changed(self._constants, probes.digest(probes.constants(self._model)))
            if names:
                self._flag("constants", f"constant buffers changed: {_some(names)}", step, "void")

    def _check_trail(self, step: int) -> None:
        trail = self._trail
        held = probes.mapped_files(trail.evaluation_files)
        opened = [*trail.opened, *sorted(held - self._held_files)]
        if opened:
            self._flag("files", f"evaluation data opened by the submission: {_some(opened)}", step, "void")
        if trail.processes:
            self._flag("spawned", f"processes started: {_some(trail.processes)}", step, "void" if step else "warn")
        if trail.connections:
            self._flag("network", f"connections opened: {_some(trail.connections)}", step, "void" if step else "warn")
        trail.opened, trail.processes, trail.connections = [], [], []
        self._held_files = held

    def _check_quiet(self, step: int) -> None:
        """Nothing may work any more. Thread pools spin for some milliseconds after their last task, so ask again."""
        fraction = 0.0
        if self._on("quiet") and not self._spins:
            for window in (0.01, 0.02, 0.05, 0.1, 0.2):
                fraction = probes.busy_seconds(window) / window
                if fraction <= self._limits.idle_fraction:
                    break
            else:
                self._flag("quiet", f"threads used {fraction:.0%} of a processor while the clock stood", step, "void")
        if self._device.type == "cuda" and self._on("device"):
            busy = self._device_seconds()
            if busy > self._limits.device_seconds:
                self._flag("device", f"the device still had {busy * 1e3:.1f} ms of work", step, "void")

    def _device_seconds(self) -> float:
        """How long the device takes to fall idle once more after it was idle; the least of three tries."""
        waits = []
        for _ in range(3):
            torch.cuda.synchronize(self._device)
            probes.busy_seconds(0.005)
            started = self._now()
            torch.cuda.synchronize(self._device)
            waits.append(self._now() - started)
        return min(waits)

    # ---------------------------------------------------------------- evaluation

    def before_evaluation(self, step: int) -> None:
        """Digests weights and state. To be called when the harness itself has done with both."""
        weights = probes.digest(probes.learned(self._model)) if self._on("weights_digest") else {}
        state = probes.digest(probes.flatten(self._algorithm.state_dict())) if self._on("state_digest") else {}
        names = self._not_finite() if self._on("finite") else []
        self.weights_are_finite = not names
        if names:
            self._flag("finite", f"not finite: {_some(names)}", step, "warn")
        self._standing = _Standing(
            weights=weights,
            state=state,
            random=self._random_state(),
            position=self._stream.position,
        )
        if weights and self._totals.intervals:
            self._totals.intervals[-1]["weights"] = probes.summary(weights)

    def after_evaluation(self, step: int) -> None:
        """Compares with `before_evaluation`."""
        assert self._standing is not None
        standing, self._standing = self._standing, None
        if self._on("weights_digest"):
            names = probes.changed(standing.weights, probes.digest(probes.learned(self._model)))
            if names:
                self._flag("weights_digest", f"changed during the evaluation: {_some(names)}", step, "void")
        if self._on("state_digest"):
            now = probes.digest(probes.flatten(self._algorithm.state_dict()))
            names = probes.changed(standing.state, now)
            if names:
                self._flag("state_digest", f"changed during the evaluation: {_some(names)}", step, "void")
        if self._random_state() != standing.random:
            self._flag("random_state", "the evaluation drew random numbers", step, "warn")
        if self._stream.position != standing.position:
            drawn = self._stream.position - standing.position
            self._flag("stream", f"{drawn} batches were drawn during the evaluation", step, "void")
        self._judge_workers(self._workers, step)

    def _not_finite(self) -> list[str]:
        named = [(n, p) for n, p in self._model.named_parameters() if p.is_floating_point() and p.numel()]
        if not named:
            return []
        with torch.no_grad():
            sizes = torch.stack([norm.float() for norm in torch._foreach_norm([p for _, p in named], float("inf"))])
        return [name for (name, _), ok in zip(named, sizes.isfinite().tolist(), strict=True) if not ok]

    def _random_state(self) -> int:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return hash(tuple(state.numpy().tobytes() for state in states))

    def _graphs(self) -> int:
        return sum(entry.graphs for entry in self._compiler.counts.values())

    def _foreign_threads(self) -> list[probes.Worker]:
        return probes.foreign_threads(self._known_threads) if self._on("threads") else []

    def _foreign_children(self) -> list[probes.Worker]:
        return probes.foreign_children(self._known_children) if self._on("processes") else []

    def _judge_workers(self, then: _Workers, step: int) -> None:
        """A foreign thread or process that lives is noted; one that worked voids the trial."""
        compiled = self._graphs() != then.graphs  # then the compiler's own pools were at work
        lasted = self._now() - then.since
        allowed = self._limits.foreign_seconds + self._limits.foreign_fraction * lasted
        for kind, guard, before, now in (
            ("thread", "threads", then.threads, self._foreign_threads()),
            ("process", "processes", then.children, self._foreign_children()),
        ):
            for worker in now:
                past = before.get(worker.name)
                used = worker.cpu_seconds - (past.cpu_seconds if past is not None and past.id == worker.id else 0.0)
                if worker.name not in self._totals.foreign:
                    self._totals.foreign.append(worker.name)
                    self._flag(guard, f"{kind} {worker.name!r} lives on while the clock stands", step, "warn")
                if used > allowed and not compiled:
                    reason = f"{kind} {worker.name!r} worked for {used:.2f} s while the clock stood"
                    self._flag(guard, reason, step, "void")

    # ---------------------------------------------------------------- the end

    def finish(self) -> None:
        """Last measurements, when the trial is over. The compiler's callbacks are removed."""
        self._totals.calibration.append(calibrate(self._device))
        first, last = self._totals.calibration[0], self._totals.calibration[-1]
        ratio = max(first, last) / min(first, last)
        if ratio > self._limits.calibration_ratio:
            reason = (
                f"a fixed piece of work took {first * 1e3:.1f} ms before the trial and {last * 1e3:.1f} ms after it"
            )
            self._flag("calibration", reason, self._totals.facts.get("step", 0), "warn")
        self._trail.active = False
        self._compiler.detach()
        if self._telemetry is not None:
            self._telemetry.close()

    def section(self) -> dict[str, Any]:
        """The `validity` section of `trial.json`: verdict, flags, totals, one row per interval."""
        totals, facts = self._totals, self._totals.facts
        steps, seconds = facts.get("step", 0), facts.get("submission_seconds", 0.0)
        means = [row["mean_step_seconds"] for row in totals.intervals if row["steps"] > 1]
        return {
            "valid": not any(flag.severity == "void" for flag in self.flags),
            "flags": [asdict(flag) for flag in self.flags],
            "disabled_guards": sorted(self.disabled),
            "data_stall_fraction": sum(row["wait_seconds"] for row in totals.intervals) / seconds if seconds else 0.0,
            "samples_per_step": facts.get("samples", 0) / steps if steps else 0.0,
            "forward_passes_per_step": facts.get("forward_passes", 0) / steps if steps else 0.0,
            "backward_passes_per_step": facts.get("backward_passes", 0) / steps if steps else 0.0,
            "mean_step_seconds": statistics.median(means) if means else None,
            "step_variation": max((row.get("step_variation", 0.0) for row in totals.intervals[1:]), default=None),
            "interval_variation": statistics.stdev(means) / statistics.fmean(means) if len(means) > 1 else None,
            "weights_in_products": self._weights_in_products,
            "setup": dict(totals.setup),
            "compilations": {stage: asdict(count) for stage, count in self._compiler.counts.items()},
            "calibration_seconds": list(totals.calibration),
            "foreign_workers": list(totals.foreign),
            "intervals": list(totals.intervals),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain values."""
        return {"totals": asdict(self._totals), "flags": [asdict(flag) for flag in self.flags]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; what this process has found so far is kept. Rank 0 keeps the flags of all ranks."""
        mine = self._totals
        self._totals = _Totals(**state["totals"])
        self._totals.compilations = {}  # this process's compiler counts from zero
        self._totals.calibration = [*self._totals.calibration[:1], *mine.calibration]
        self._totals.setup = mine.setup
        self.flags[:0] = [Flag(**flag) for flag in state["flags"]] if self._rank == 0 else []

    # ---------------------------------------------------------------- helpers

    def _on(self, name: str) -> bool:
        return name not in self.disabled

    def _flag(self, name: str, reason: str, step: int, severity: Severity) -> None:
        """Adds a flag, or counts it to an earlier one of the same guard: the same reason again, or one of too many."""
        assert name in GUARDS
        if not self._on(name):
            return
        same = [i for i, flag in enumerate(self.flags) if (flag.name, flag.severity) == (name, severity)]
        again = [i for i in same if self.flags[i].reason == reason]
        if again or len(same) >= MOST_FLAGS[severity]:
            index = (again or same)[-1]
            self.flags[index] = replace(self.flags[index], count=self.flags[index].count + 1)
        else:
            self.flags.append(Flag(name, reason, step, severity, self._rank))


def merge(sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The section of rank 0 with the flags of all ranks; valid where every rank's is."""
    return {
        **sections[0],
        "valid": all(section["valid"] for section in sections),
        "flags": [flag for section in sections for flag in section["flags"]],
    }


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name or "model" for name in {**then, **now} if then.get(name) != now.get(name)]


def _some(names: Sequence[str], most: int = 4) -> str:
    """The first few of a list, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
