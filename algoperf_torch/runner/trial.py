"""One trial: the loop, and everything that happens while its clock stands."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from algoperf_torch.data.stream import TrainStream
from algoperf_torch.errors import AlgoPerfError, DivergedError, Preempted, SubmissionError, TrainingComplete
from algoperf_torch.optim.base import TrainingAlgorithm
from algoperf_torch.optim.context import PassCounts, TrainingContext
from algoperf_torch.runner import checkpoint
from algoperf_torch.runner.clock import Clock, steps_to_next_check
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.engine import ModelEngine
from algoperf_torch.runner.evaluate import evaluate
from algoperf_torch.runner.options import Budget
from algoperf_torch.runner.record import TrialRecord
from algoperf_torch.runner.status import Phase, Status
from algoperf_torch.runner.validity import Guards, IntervalFacts, merge
from algoperf_torch.spec import Split
from algoperf_torch.versions import Protocol as VersionProtocol
from algoperf_torch.versions import WorkloadTerms
from algoperf_torch.workloads.layers import dropout_rates, restore_dropout_rates, running_statistics


@dataclass
class TrialState:
    """What a checkpoint restores besides model, algorithm, random state and stream."""

    step: int = 0
    submission_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    logging_seconds: float = 0.0
    seconds_at_evaluation: float = 0.0  # submission time of the last evaluation
    logging_after_evaluation: float = 0.0
    evaluated: bool = False
    preemption_count: int = 0
    validation_step: int | None = None  # first evaluation that met the validation target
    validation_seconds: float | None = None
    test_step: int | None = None
    test_seconds: float | None = None
    largest_lateness: float = 0.0  # seconds by which an evaluation came after its period was over
    samples: int = 0  # examples drawn, globally
    rows: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """What the version and the options say of this trial."""

    protocol: VersionProtocol
    terms: WorkloadTerms
    budget: Budget
    eval_period: float
    eval_batch_size: int | None
    global_batch_size: int
    eval_seed: int


NANOSECOND = 1e-9  # by which sums of seconds may be off


class Stop(Protocol):
    """A request from outside to save and end."""

    requested: bool


@dataclass
class Trial:
    """All parts of one running trial. `run` trains until it ends; `state` and `record` tell how."""

    rules: Rules
    ranks: Ranks
    engine: ModelEngine
    context: TrainingContext
    algorithm: TrainingAlgorithm
    stream: TrainStream
    clock: Clock
    guards: Guards
    identity: Mapping[str, Any]  # what a checkpoint must agree with
    record: TrialRecord | None  # on rank 0
    saves_checkpoints: bool
    stop: Stop
    report: Callable[[TrialState, Mapping[str, float]], None]  # shows an evaluation to the user
    track: Callable[[int, Mapping[str, float]], None]  # TensorBoard, Weights & Biases
    state: TrialState = field(default_factory=TrialState)
    phase: Phase = Phase.SETUP
    _step_seconds: float = 0.0
    _process_started: float = field(default_factory=time.perf_counter)

    # ---------------------------------------------------------------- the loop

    def run(self) -> Status:
        """Trains until a target, the budget, the step limit, completion, divergence, or a request to stop.

        Raises what the submission raised, wrapped in `SubmissionError`; `DivergedError`; `Preempted`.
        """
        context, algorithm, stream = self.context, self.algorithm, self.stream
        select_batch, training_step, beat = algorithm.select_batch, algorithm.training_step, self._beat
        step_done = self.guards.step_done
        step = self.state.step
        single = self.ranks.world_size == 1
        context.step = step
        self._start_clock()
        if step and (status := self._check(step, self._agree(step))) is not None:  # what a checkpoint left undone
            return status
        checked_step, checked_seconds = step, self.state.submission_seconds
        next_check = step + 1
        while True:
            try:
                training_step(select_batch(stream))
            except TrainingComplete:
                context.finished = True
            except BaseException as error:
                raise blame(error, f"step {step}") from error
            step += 1
            context.step = step
            step_done()
            beat(step)
            if step < next_check and not context.finished and not (single and self.stop.requested):
                continue
            elapsed = self._agree(step)
            self._step_seconds = (elapsed - checked_seconds) / (step - checked_step)
            if (status := self._check(step, elapsed)) is not None:
                return status
            at_most = 2 * (step - checked_step)  # a step time that was measured over few steps is not trusted for many
            checked_step, checked_seconds = step, max(elapsed, self.state.submission_seconds)  # equal on all ranks
            next_check = step + min(at_most, self._steps_ahead(step, checked_seconds))

    def _check(self, step: int, elapsed: float) -> Status | None:
        """Decides what is due at this step; None while the trial goes on."""
        state, rules = self.state, self.rules
        limit = rules.budget.steps
        finished = self.context.finished or (limit is not None and step >= limit)
        since = elapsed - state.seconds_at_evaluation + state.logging_after_evaluation
        done = bool(state.rows) and state.rows[-1]["global_step"] == step  # by the process that wrote the checkpoint
        due = not done and (not state.evaluated or finished or since > rules.eval_period - NANOSECOND)
        over = elapsed >= rules.budget.seconds
        if not due and not over and not (done and finished) and not self.stop.requested:
            return None
        stopping = self.stop.requested  # what is due then happens at the start of the resumed run
        evaluates = due and not stopping and (not over or rules.protocol.late_evaluation)
        if evaluates and rules.protocol.prepare_hook:
            self._call("prepare_for_eval", self.algorithm.prepare_for_eval)
        self._stop_clock(step)
        over = state.submission_seconds >= rules.budget.seconds  # the hook is charged, too
        row: dict[str, float] | None = None
        if evaluates and (not over or rules.protocol.late_evaluation):
            if state.evaluated and not finished:
                state.largest_lateness = max(state.largest_lateness, since - rules.eval_period)
            row = self._evaluate(step)
        ended = over or (not stopping and (finished or self._goals_met()))
        if evaluates and not ended and rules.protocol.prepare_hook:
            self._start_clock()
            self._call("resume_training", self.algorithm.resume_training)
            self._stop_clock(step)
        self._save(step, row, ended=ended)
        if row is not None and rules.protocol.end_on_divergence:
            if math.isnan(row[self._validation_metric]):
                raise DivergedError(f"{self._validation_metric} is not a number after step {step}.")
            if not self.guards.weights_are_finite:  # an accuracy stays a number, whatever the weights
                raise DivergedError(f"Weights are not finite after step {step}.")
        if ended:
            return Status.REACHED if state.validation_step is not None else Status.BUDGET_EXHAUSTED
        if stopping:
            raise Preempted(f"Stopped on request after step {step}; start the same command again to go on.")
        self._start_clock()
        return None

    @property
    def _validation_metric(self) -> str:
        return f"{Split.VALIDATION.prefix}/{self.rules.terms.metric}"

    def _goals_met(self) -> bool:
        met = self.state.validation_step is not None
        if self.rules.protocol.stop_at == "both" and self.rules.terms.test is not None:
            met = met and self.state.test_step is not None
        return met

    def _steps_ahead(self, step: int, elapsed: float) -> int:
        state, rules = self.state, self.rules
        since = elapsed - state.seconds_at_evaluation + state.logging_after_evaluation
        remaining = min(rules.eval_period - since, rules.budget.seconds - elapsed)
        tolerance = 0.0 if self.clock.injected else 0.01 * rules.eval_period
        ahead = steps_to_next_check(remaining, self._step_seconds, tolerance)
        limit = rules.budget.steps
        return ahead if limit is None else min(ahead, max(1, limit - step))

    # ---------------------------------------------------------------- clock

    def _start_clock(self) -> None:
        self._enter(Phase.TRAINING)
        self.guards.harness_done()
        self.stream.resume()
        self.clock.start()
        self.guards.clock_starts()

    def _stop_clock(self, step: int) -> None:
        """The clock stands, the ranks agree on its time, nothing works in the background."""
        self.guards.clock_stops()
        self.clock.stop()
        (seconds,) = self.ranks.maximum(self.clock.elapsed(step))
        self.clock.settle(seconds)
        self.state.step, self.state.submission_seconds = step, seconds
        self.stream.pause()
        self._enter(Phase.EVALUATION)

    def _agree(self, step: int) -> float:
        """Submission time, and requests to stop or finish, as the ranks agree on them."""
        self.ranks.synchronize()
        if self.ranks.world_size == 1:
            return self.clock.elapsed(step)
        elapsed, stop, finished, most, least, drawn_most, drawn_least = self.ranks.maximum(
            self.clock.elapsed(step),
            float(self.stop.requested),
            float(self.context.finished),
            step,
            -step,
            self.stream.position,
            -self.stream.position,
        )
        if most != -least or drawn_most != -drawn_least:
            raise SubmissionError(
                f"The ranks disagree: steps {-least:.0f} to {most:.0f}, global batches drawn {-drawn_least:.0f} to "
                f"{drawn_most:.0f}. A submission must draw the same number of batches in every step on all ranks."
            )
        self.stop.requested = bool(stop)
        self.context.finished = bool(finished)
        return elapsed

    def _call(self, name: str, hook: Callable[[], None]) -> None:
        try:
            hook()
        except BaseException as error:
            raise blame(error, name) from error

    # ---------------------------------------------------------------- off the clock

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluates, with the guards around it, and returns the row for the logs."""
        state = self.state
        started = time.perf_counter()
        self.guards.interval(self._facts(step))
        self.ranks.average_(running_statistics(self.engine.model))
        self.guards.before_evaluation(step)
        results = evaluate(
            self.engine.workload,
            self.engine.model,
            self.engine.forward_evaluation,
            self.ranks,
            seed=self.rules.eval_seed,
            eval_batch_size=self.rules.eval_batch_size,
            progress=lambda: self._beat(step),
        )
        self.guards.after_evaluation(step)
        injected = self.clock.injected
        state.evaluation_seconds += 0.0 if injected else self.ranks.maximum(time.perf_counter() - started)[0]
        self._note_goals(step, results)
        charged = state.submission_seconds + state.evaluation_seconds + state.logging_seconds
        row: dict[str, float] = {
            **results,
            "score": state.submission_seconds,
            "accumulated_submission_time": state.submission_seconds,
            "accumulated_eval_time": state.evaluation_seconds,
            "accumulated_logging_time": state.logging_seconds,
            "total_duration": charged if injected else time.perf_counter() - self._process_started,
            "global_step": step,
            "preemption_count": state.preemption_count,
        }
        state.rows.append(row)
        state.evaluated = True
        state.seconds_at_evaluation = state.submission_seconds
        self.context.eval_results.append((step, dict(row)))
        self.report(state, row)
        return row

    def _note_goals(self, step: int, results: Mapping[str, float]) -> None:
        state, terms = self.state, self.rules.terms
        if state.validation_step is None and terms.validation.reached(results[self._validation_metric]):
            state.validation_step, state.validation_seconds = step, state.submission_seconds
        if terms.test is not None and state.test_step is None:
            value = results.get(f"{Split.TEST.prefix}/{terms.metric}")
            if value is not None and terms.test.reached(value):
                state.test_step, state.test_seconds = step, state.submission_seconds

    def _facts(self, step: int) -> IntervalFacts:
        state = self.state
        state.samples = self.stream.position * self.rules.global_batch_size
        return IntervalFacts(
            step=step,
            submission_seconds=state.submission_seconds,
            wait_seconds=self.stream.wait_seconds,
            samples=state.samples,
            forward_passes=self.context.passes.forward,
            backward_passes=self.context.passes.backward,
        )

    def _save(self, step: int, row: dict[str, float] | None, *, ended: bool) -> None:
        """Checkpoint first, then the files: what a reader sees is always in a checkpoint."""
        state = self.state
        started = time.perf_counter()
        self._enter(Phase.CHECKPOINT)
        scalars = self._scalar_rows()
        validity = self.validity()
        if self.saves_checkpoints and not ended:
            self._write_checkpoint(step, scalars if row is None else [*scalars, row], validity["flags"])
        if self.record is not None:
            if row is None:
                self.record.add_measurements(scalars)
            else:
                self.record.add_evaluation(row, scalars)
                self.track(step, row)
            if ended:
                last = {
                    "score": state.submission_seconds,
                    "global_step": step,
                    "preemption_count": state.preemption_count,
                }
                self.record.add_measurements([last])
            self.record.update(validity=validity, **self.summary())
        self.context.scalars.clear()
        spent = 0.0 if self.clock.injected else self.ranks.maximum(time.perf_counter() - started)[0]
        state.logging_seconds += spent
        state.logging_after_evaluation = spent

    def _scalar_rows(self) -> list[dict[str, Any]]:
        """What the submission logged since the last save, a row a step."""
        by_step: dict[int, dict[str, Any]] = {}
        for at, name, value in self.context.scalars:
            row = by_step.setdefault(at, {"global_step": at, "preemption_count": self.state.preemption_count})
            row[name] = float(value)
        return list(by_step.values())

    # ---------------------------------------------------------------- checkpoint

    def _generators(self) -> dict[str, torch.Generator]:
        return {"generator": self.context.generator, "data_generator": self.context.data_generator}

    def _write_checkpoint(self, step: int, pending: list[dict[str, Any]], flags: list[dict[str, Any]]) -> None:
        random_states = self.ranks.gather_bytes(checkpoint.random_state(self.ranks.device, self._generators()))
        algorithm = self.algorithm.state_dict()  # on every rank: gathering a divided state is collective
        if self.record is not None:
            checkpoint.save(
                self.record.directory,
                step,
                {
                    "identity": dict(self.identity),
                    "model": self.engine.model.state_dict(),
                    "algorithm": algorithm,
                    "random": random_states,
                    "stream_position": self.stream.position,
                    "passes": asdict(self.context.passes),
                    "trial": asdict(self.state),
                    "guards": self.guards.state_dict() | {"flags": flags},  # of all ranks
                    "dropout_rates": dropout_rates(self.engine.model),
                    "measurements": {"rows": self.record.num_measurements + len(pending), "last": pending},
                },
            )
        self.ranks.barrier()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Sets a freshly built trial to the state of a checkpoint (as `checkpoint.load` gives it)."""
        self.engine.model.load_state_dict(saved["model"])
        self.algorithm.load_state_dict(checkpoint.decode(saved["algorithm"], self.algorithm.state_dict(), "algorithm"))
        checkpoint.restore_random_state(saved["random"][self.ranks.rank], self.ranks.device, self._generators())
        self.stream.position = saved["stream_position"]
        self.context.passes = PassCounts(**saved["passes"])
        self.state = TrialState(**saved["trial"])
        self.state.preemption_count += 0 if self.clock.injected else 1
        self.clock.settle(self.state.submission_seconds)
        self.context.eval_results[:] = [(int(row["global_step"]), dict(row)) for row in self.state.rows]
        self.guards.load_state_dict(saved["guards"])
        restore_dropout_rates(self.engine.model, saved["dropout_rates"])
        if self.record is not None:
            measurements = saved["measurements"]
            self.record.restore(self.state.rows, measurements["rows"], measurements["last"])

    # ---------------------------------------------------------------- telling

    def summary(self) -> dict[str, Any]:
        """The result so far, for `trial.json`."""
        state = self.state
        return {
            "result": {
                "steps": state.step,
                "submission_seconds": state.submission_seconds,
                "validation_step": state.validation_step,
                "validation_seconds": state.validation_seconds,
                "test_step": state.test_step,
                "test_seconds": state.test_seconds,
                "samples": state.samples,
                "forward_passes": self.context.passes.forward,
                "backward_passes": self.context.passes.backward,
                "data_wait_seconds": self.stream.wait_seconds,
                "evaluations": len(state.rows),
                "largest_evaluation_lateness_seconds": state.largest_lateness,
            },
            "evaluation_seconds": state.evaluation_seconds,
            "logging_seconds": state.logging_seconds,
            "preemption_count": state.preemption_count,
        }

    def validity(self) -> dict[str, Any]:
        """The guards' findings on all ranks; called by all of them."""
        own = self.guards.section()
        text = json.dumps(own if self.ranks.is_main else {**own, "intervals": []}).encode()
        gathered = self.ranks.gather_bytes(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return merge([json.loads(bytes(section.tolist())) for section in gathered])

    def _beat(self, step: int) -> None:
        if self.record is not None:
            self.record.heartbeat.beat(step)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        if self.record is not None:
            self.record.heartbeat.enter(phase, self.state.step)


def blame(error: BaseException, where: str) -> BaseException:
    """What happened inside a call of the submission, as one of our errors."""
    if isinstance(error, AlgoPerfError | MemoryError | KeyboardInterrupt | torch.OutOfMemoryError):
        return error
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return MemoryError(str(error).splitlines()[0])
    text = str(error).strip().splitlines()
    return SubmissionError(
        f"The submission raised {type(error).__name__} in {where}: {text[0] if text else 'no message'}"
    )
