"""The functions of an existing AlgoPerf submission behind the interface that the runner knows."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, overload

import torch
from torch import nn

from algoperf_torch.errors import (
    AlgoPerfError,
    HyperparameterError,
    SubmissionError,
    SubmissionLoadError,
    TrainingComplete,
    UsageError,
)
from algoperf_torch.interop.import_scope import ImportScope
from algoperf_torch.interop.official_files import NOT_OFFERED, PACKAGES
from algoperf_torch.interop.official_state import pack, unpack
from algoperf_torch.interop.official_workload import Workload
from algoperf_torch.optim.base import TrainingAlgorithm
from algoperf_torch.optim.context import OfficialFacts, TrainingContext
from algoperf_torch.spec import Batch, Hyperparameters


@dataclass(frozen=True)
class EntryPoints:
    """The functions of a submission.

    Attributes:
        takes_train_state: whether `update_params` has a parameter of that name.
        passes_dropout: whether a forward call gives `dropout_rate`; before 2025 it was fixed when the model was built.
    """

    get_batch_size: Callable[[str], int]
    init_optimizer_state: Callable[..., Any]
    update_params: Callable[..., Any]
    data_selection: Callable[..., Any]
    prepare_for_eval: Callable[..., Any] | None
    takes_train_state: bool
    passes_dropout: bool


class OfficialAlgorithm(TrainingAlgorithm):
    """A submission's functions behind the interface that the runner knows; derived from once for each submission."""

    points: ClassVar[EntryPoints]
    scope: ClassVar[ImportScope]
    entry: ClassVar[Path]

    def __init__(self, hyperparameters: Hyperparameters, context: TrainingContext) -> None:
        if context.engine.official is None:
            raise SubmissionLoadError(f"{self.entry}: an AlgoPerf submission needs a trial; --workload names one.")
        if context.num_microbatches > 1:
            raise UsageError("--micro-batch: an AlgoPerf submission takes its batches whole.")
        self.context = context
        self.facts = context.engine.official
        self.container = self.facts.container
        self.hyperparameters = named_tuple(hyperparameters)
        fixed_dropout = None if self.points.passes_dropout else hyperparameters.get("dropout_rate")
        self.workload = Workload(context, self.facts, fixed_dropout)
        if fixed_dropout is not None:
            context.set_dropout(fixed_dropout)
        self.label_smoothing = float(hyperparameters.get("label_smoothing") or 0.0)
        self.model_state: Any = None
        self.train_state = TrainState(context)
        state = self._call(
            self.points.init_optimizer_state,
            self.workload,
            self.container,
            self.model_state,
            self.hyperparameters,
            list(self.facts.optimizer_seed),
        )
        if not isinstance(state, dict):
            raise SubmissionError(f"init_optimizer_state returned a {type(state).__name__}, not a dictionary.")
        self.optimizer_state = state

    @classmethod
    def check_hyperparameters(cls, hyperparameters: Hyperparameters) -> None:
        named_tuple(hyperparameters)
        rate, other = (hyperparameters.get(name) for name in ("dropout_rate", "aux_dropout_rate"))
        if other is not None and other != rate:
            raise HyperparameterError(
                f"aux_dropout_rate={other!r}: the models have one dropout rate. Give dropout_rate alone, or both equal."
            )
        for name in ("dropout_rate", "label_smoothing"):
            value = hyperparameters.get(name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value < 1):
                raise HyperparameterError(f"Invalid {name}={value!r}: must be in [0, 1).")

    @classmethod
    def from_context(cls, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> Self:  # noqa: ARG003
        return cls(hyperparameters, context)

    # ---------------------------------------------------------------- training

    def select_batch(self, stream: Iterator[Batch]) -> Any:
        if self.points.takes_train_state:
            self.train_state.step_begins()
        return self._call(
            self.points.data_selection,
            self.workload,
            stream,
            self.optimizer_state,
            self.container,
            self.model_state,
            self.hyperparameters,
            self.context.step,
            self._seed(0),
        )

    def training_step(self, batch: Any) -> None:
        more = {"train_state": self.train_state} if self.points.takes_train_state else {}
        self._keep("update_params", self._call(self.points.update_params, batch=batch, **self._arguments(1), **more))
        self.workload.step_done()

    def prepare_for_eval(self) -> None:
        if self.points.prepare_for_eval is not None:
            self._keep("prepare_for_eval", self._call(self.points.prepare_for_eval, **self._arguments(2)))
            self.workload.step_done()

    def _arguments(self, seed: int) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "current_param_container": self.container,
            "current_params_types": self.facts.parameter_types,
            "model_state": self.model_state,
            "hyperparameters": self.hyperparameters,
            "loss_type": self.workload.loss_type,
            "optimizer_state": self.optimizer_state,
            "eval_results": self.context.eval_results,
            "global_step": self.context.step,
            "rng": self._seed(seed),
        }

    def _seed(self, number: int) -> StepSeed:
        """Of this step: data selection 0, update 1, preparation 2. The preparation's is that of the step before it."""
        return StepSeed(self.facts, max(self.context.step - (number == 2), 0), number)

    def _keep(self, name: str, result: Any) -> None:
        if not isinstance(result, tuple) or len(result) != 3:
            raise SubmissionError(f"{name} must return (optimizer_state, model, model_state), not {_kind(result)}.")
        state, container, model_state = result
        if not isinstance(state, dict):
            raise SubmissionError(f"{name} returned an optimizer_state that is {_kind(state)}, not a dictionary.")
        if container is not self.container and container is not self.context.model:
            raise SubmissionError(
                f"{name} returned another model. Change the parameters of the one that was given in place."
            )
        self.optimizer_state, self.model_state = state, model_state

    def _call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        try:
            with self.scope:
                return function(*arguments, **keywords)
        except (AlgoPerfError, TrainingComplete, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = self._reason(error, function)
            if reason is None:
                raise
            raised = f"{function.__name__} raised {type(error).__name__}: {_first_line(error)}"
            raise SubmissionError(f"{raised} {reason}") from error

    def _reason(self, error: Exception, function: Callable[..., Any]) -> str | None:
        """What an error means that comes of running here, not of the submission's own doing."""
        text = str(error)
        starts = function is self.points.init_optimizer_state
        if starts and self.hyperparameters is None and "'NoneType' object has no attribute" in text:
            return (
                "(no hyperparameters were given: write --hparams or --search-space, or --ruleset self for a submission "
                "without any)"
            )
        if isinstance(error, AttributeError) and "'Hyperparameters' object has no attribute" in text:
            return f"(the hyperparameters of this trial are: {', '.join(self.hyperparameters._fields)})"
        if self.context.device.type != "cuda" and ("CUDA" in text or "NVIDIA" in text or "cuda" in text):
            return "(the submission needs a CUDA device; this trial runs on the CPU)"
        if self.context.world_size == 1 and "process group" in text:
            return "(the submission needs several ranks; this trial has one)"
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in (*NOT_OFFERED, *PACKAGES):
            return "(not offered here; docs/existing-submissions.md says what is)"
        return None

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As `official_state` says; it must be equal on all ranks, as in the original: rank 0's is stored."""
        with self.scope:
            device = self.context.device
            return {
                "optimizer_state": pack(self.optimizer_state, device),
                "model_state": pack(self.model_state, device),
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with self.scope:
            self.optimizer_state = unpack(state["optimizer_state"], self.optimizer_state, self.context.device)
            self.model_state = unpack(state["model_state"], self.model_state, self.context.device, "model_state")
        self.workload.restored()


class StepSeed(Sequence[int]):
    """A pair of whole numbers, computed when it is read: that takes a fraction of a millisecond, and nobody does."""

    def __init__(self, facts: OfficialFacts, step: int, number: int) -> None:
        self._facts, self._step, self._number = facts, step, number

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self._facts.step_seeds(self._step)[self._number][index]

    def __len__(self) -> int:
        return 2


class TrainState(Mapping[str, Any]):
    """What `train_state` tells: how the trial stands. Times are seconds of the trial, not of the day."""

    def __init__(self, context: TrainingContext) -> None:
        self._context = context
        self._last_step_end = 0.0
        start = {"accumulated_submission_time": 0.0, "accumulated_eval_time": 0.0, "accumulated_logging_time": 0.0}
        self._start: Mapping[str, float] = MappingProxyType(start)

    def step_begins(self) -> None:
        self._last_step_end = self._context.elapsed_seconds

    def _values(self) -> dict[str, Any]:
        context = self._context
        last: Mapping[str, float] = context.eval_results[-1][1] if context.eval_results else self._start
        away = last["accumulated_eval_time"] + last["accumulated_logging_time"]
        return {
            "validation_goal_reached": any(
                context.target.reached(row.get(f"validation/{context.target.metric}", float("nan")))
                for _, row in context.eval_results
            ),
            "test_goal_reached": self._test_goal_reached(),
            "is_time_remaining": True,
            "last_eval_time": last["accumulated_submission_time"] + away if context.eval_results else 0.0,
            "training_complete": False,
            "accumulated_submission_time": self._last_step_end,
            "accumulated_eval_time": last["accumulated_eval_time"],
            "accumulated_logging_time": last["accumulated_logging_time"],
            "last_step_end_time": self._last_step_end + away,
        }

    def _test_goal_reached(self) -> bool:
        context = self._context
        target = context.engine.official.test_target if context.engine.official is not None else None
        if target is None:
            return False
        rows = (row for _, row in context.eval_results)
        return any(target.reached(row.get(f"test/{target.metric}", float("nan"))) for row in rows)

    def __getitem__(self, name: str) -> Any:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())


def named_tuple(hyperparameters: Hyperparameters) -> Any:
    """A named tuple `Hyperparameters` with the fields in their order; None where there are none (self-tuning)."""
    if not hyperparameters:
        return None
    for name in hyperparameters:
        if iskeyword(name) or name.startswith("_"):
            raise HyperparameterError(f"Hyperparameter name {name!r} cannot be the field of a named tuple.")
    return namedtuple("Hyperparameters", list(hyperparameters))(**hyperparameters)


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
