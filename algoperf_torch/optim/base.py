"""The algorithm interface: `TrainingAlgorithm`, `OptimizerAlgorithm` and `BaseOptimizer`, each usable alone."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from algoperf_torch.errors import (
    AlgoPerfError,
    HyperparameterError,
    SubmissionError,
    SubmissionLoadError,
    TrainingComplete,
)
from algoperf_torch.kernels import registry
from algoperf_torch.kernels.grad_norm import clip_coefficient_with_table
from algoperf_torch.kernels.launch import DTYPES, TensorTable, is_dense
from algoperf_torch.optim.arithmetic import state_dtype
from algoperf_torch.optim.batch_norm import BatchNormRecomputation
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.optim.fused import FusedUpdate, KeptGroup
from algoperf_torch.optim.hyperparameters import Options, sort_hyperparameters
from algoperf_torch.optim.schedules import make_schedule
from algoperf_torch.spec import Batch, Hyperparameters

LOG_PERIOD = 100  # updates between two rows of loss and learning rate in `measurements.csv`


class TrainingAlgorithm(ABC):
    """All that the runner knows of a submission.

    Attributes:
        batch_sizes: workload name -> global batch size; other workloads use their reference size.
        label_smoothing: what `context.loss` will be called with, once the algorithm is built. Where the harness compiles
            its loss before the clock starts, it does so for this value; any other is compiled, and charged, when used.
    """

    batch_sizes: ClassVar[Mapping[str, int]] = {}
    label_smoothing: float = 0.0

    @classmethod
    def check_hyperparameters(cls, hyperparameters: Hyperparameters) -> None:
        """Raises `HyperparameterError` for a point that cannot be used, before anything is built or written."""

    @classmethod
    @abstractmethod
    def from_context(cls, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> Self:
        """Builds the algorithm for a freshly initialised model. Not timed, but its duration is recorded."""

    def select_batch(self, stream: Iterator[Batch]) -> Any:
        """The data of one step; timed."""
        return next(stream)

    @abstractmethod
    def training_step(self, batch: Any) -> None:
        """One update of the model; timed."""

    def prepare_for_eval(self) -> None:
        """Called before every evaluation; timed. Averaged weights are swapped in here."""

    def resume_training(self) -> None:
        """Called after every evaluation; timed. Undoes `prepare_for_eval`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint needs beside the model: tensors in plain containers, equal on all ranks."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; called on a freshly built algorithm, the model being restored already."""


class OptimizerAlgorithm(TrainingAlgorithm):
    """Drives one `torch.optim.Optimizer`: forward, mean loss over the global batch, backward, clip, update, schedule.

    A subclass names the optimizer and may override `param_groups`. Hyperparameters are the arguments of the optimizer's
    constructor (or AlgoPerf's names for them), `label_smoothing`, `grad_clip`, `dropout_rate`, and the options of the
    schedule. An optimizer with the methods `train` and `eval` (schedule-free ones) is switched around every evaluation,
    and batch-norm statistics are then recomputed from the latest batches.

    Attributes:
        optimizer_class: called with the parameters, or groups of them, and keyword arguments.
        schedule: a key of `schedules.SCHEDULES`.
        defaults: hyperparameters for what a trial does not give.
        accepts: names of the hyperparameters that a trial may give; `None`: all.
        label: how messages call this submission.
        needs_closure: whether `step` evaluates the loss itself; `None`: if its argument `closure` has no default.
    """

    optimizer_class: ClassVar[type[Optimizer]]
    schedule: ClassVar[str] = "constant"
    defaults: ClassVar[Mapping[str, Any]] = {}
    accepts: ClassVar[frozenset[str] | None] = None
    label: ClassVar[str] = ""
    needs_closure: ClassVar[bool | None] = None

    def __init__(self, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> None:
        self.model = model
        self.context = context
        options = self.sort_hyperparameters(hyperparameters)
        self.options = options.step
        self.label_smoothing = options.step.label_smoothing
        self.optimizer = self._build(
            list(self.param_groups()), {**options.optimizer, **self.arguments(options.optimizer)}
        )
        self.multiplier = make_schedule(self.schedule, context.step_hint, options.schedule)
        self.updates = 0
        self._clip_table = TensorTable()
        self._closure_step = self._steps_with_closure()
        for group in self.optimizer.param_groups:
            if "lr" in group:
                group["initial_lr"] = float(group["lr"])
                if isinstance(self.optimizer, BaseOptimizer):  # a tensor: changing it never recompiles
                    group["lr"] = torch.tensor(group["initial_lr"], dtype=torch.float32, device=context.device)
        has_modes = all(callable(getattr(self.optimizer, name, None)) for name in ("train", "eval"))
        self._batch_norm = BatchNormRecomputation(model) if has_modes else None
        if has_modes:
            self.optimizer.train()  # type: ignore[attr-defined]
        if self.options.dropout_rate is not None:
            context.set_dropout(self.options.dropout_rate)

    @classmethod
    def over(cls, optimizer_class: type[Optimizer], **attributes: Any) -> type[OptimizerAlgorithm]:
        """The algorithm that drives `optimizer_class`; `attributes` are class attributes of this class."""
        attributes.setdefault("label", optimizer_class.__name__)
        return type(f"{optimizer_class.__name__}Algorithm", (cls,), {"optimizer_class": optimizer_class, **attributes})

    @classmethod
    def from_context(cls, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> Self:
        return cls(model, hyperparameters, context)

    # ---------------------------------------------------------------- building

    def param_groups(self) -> Iterable[Any]:
        """What the optimizer's constructor gets first: all parameters, in one group."""
        return self.model.parameters()

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Further arguments of the optimizer's constructor: what depends on the trial, say on its step hint."""
        return {}

    @classmethod
    def sort_hyperparameters(cls, hyperparameters: Mapping[str, Any]) -> Options:
        """The hyperparameters, sorted by who takes them. Raises `HyperparameterError`."""
        refused = [name for name in hyperparameters if cls.accepts is not None and name not in cls.accepts]
        if refused:
            accepted = ", ".join(sorted(cls.accepts or ())) or "none"
            raise HyperparameterError(f"{cls._name()} has no hyperparameter {refused[0]!r}. Accepted: {accepted}.")
        return sort_hyperparameters(
            hyperparameters, cls.optimizer_class, schedule=cls.schedule, label=cls._name(), defaults=cls.defaults
        )

    @classmethod
    def _name(cls) -> str:
        return cls.label or cls.__name__

    @classmethod
    def check_hyperparameters(cls, hyperparameters: Hyperparameters) -> None:
        options = cls.sort_hyperparameters(hyperparameters)
        make_schedule(cls.schedule, 1, options.schedule)
        cls._build([nn.Parameter(torch.zeros(2, 2))], options.optimizer)

    @classmethod
    def _build(cls, parameters: Sequence[Any], options: dict[str, Any]) -> Optimizer:
        try:
            return cls.optimizer_class(parameters, **options)
        except AlgoPerfError:
            raise
        except Exception as error:
            reason = _first_line(error)
            if _accepts(cls.optimizer_class, options):
                raise SubmissionLoadError(
                    f"{cls._name()} cannot be built over this model's parameters: {reason}"
                ) from error
            given = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no arguments"
            raise HyperparameterError(f"{cls._name()} cannot be built with {given}: {reason}") from error

    def _steps_with_closure(self) -> bool:
        if self.needs_closure is not None:
            return self.needs_closure
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        return closure is not None and closure.default is closure.empty

    # ---------------------------------------------------------------- training

    def training_step(self, batch: Any) -> None:
        lr = self._apply_schedule()
        if self._batch_norm is not None:
            self._batch_norm.keep(batch)
        if self._closure_step:
            loss = self._step_with_closure(batch)
        else:
            loss = self.backward(batch)
            if self._folds_clipping():
                self.optimizer.step(grad_scale=self._clip_coefficient())  # type: ignore[call-overload]
            else:
                self.clip_gradients()
                self._step()
        if self.updates % LOG_PERIOD == 0:
            self.context.log("loss", self._over_ranks(loss))
            self.context.log("lr", lr)
        self.updates += 1

    def backward(self, batch: Batch, *, update_batch_norm: bool = True) -> Tensor:
        """Leaves the gradient of the mean loss over the global batch in `.grad`; in parts, if the trial asks for them.

        Returns this rank's share of the mean loss, detached; the average over the ranks is the mean itself.
        """
        context, smoothing = self.context, self.label_smoothing
        self.model.zero_grad()
        if context.num_microbatches == 1:
            outputs = context.forward(batch, update_batch_norm=update_batch_norm)
            loss = context.mean_loss(outputs, batch, smoothing)
            loss.backward()
            return loss.detach()
        summed, n_valid = torch.zeros((), device=context.device), torch.zeros((), device=context.device)
        for number, part in enumerate(context.microbatches(batch, context.num_microbatches), start=1):
            with nullcontext() if number == context.num_microbatches else context.no_sync():
                output = context.loss(context.forward(part, update_batch_norm=update_batch_norm), part, smoothing)
                output.summed.backward()
            summed += output.summed.detach()
            n_valid += output.n_valid
        # The number of valid examples is known only after the last pass, so the sum is normalised afterwards.
        scale = context.world_size / context.sum_over_ranks(n_valid)
        torch._foreach_mul_([p.grad for p in self.model.parameters() if p.grad is not None], scale)
        return summed * scale

    def clip_gradients(self) -> None:
        """Scales the whole gradient down to norm `grad_clip`, where that is given."""
        if self.options.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=self.options.grad_clip)

    def _folds_clipping(self) -> bool:
        """Whether the update multiplies the gradients itself: they are read for the norm and the update, never rewritten."""
        return (
            self.options.grad_clip is not None
            and type(self).clip_gradients is OptimizerAlgorithm.clip_gradients
            and isinstance(self.optimizer, BaseOptimizer)
            and self.optimizer.is_fused
        )

    def _clip_coefficient(self) -> Tensor:
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        assert self.options.grad_clip is not None
        return clip_coefficient_with_table(self._clip_table, grads, self.options.grad_clip)[1]

    def _step_with_closure(self, batch: Batch) -> Tensor:
        """An update that evaluates the loss as often as it likes: same dropout each time, batch norm moved once."""
        first: list[Tensor] = []
        random_state = _random_state(self.context.device)

        def closure() -> Tensor:
            if first:
                _set_random_state(self.context.device, random_state)
            with torch.enable_grad():
                loss = self._over_ranks(self.backward(batch, update_batch_norm=not first))
            self.clip_gradients()
            if not first:
                first.append(loss)
            return loss

        self._step(closure)
        if not first:
            raise SubmissionError(f"{self._name()}: step() never evaluated its closure.")
        return first[0]

    def _step(self, closure: Callable[[], Any] | None = None) -> None:
        try:
            self.optimizer.step() if closure is None else self.optimizer.step(closure)
        except (AlgoPerfError, TrainingComplete, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self.updates or isinstance(self.optimizer, BaseOptimizer):
                raise
            raised = f"{type(error).__name__}: {_first_line(error)}"
            raise SubmissionError(
                f"{self._name()} cannot train this model: its first step() raised {raised}"
            ) from error

    def _apply_schedule(self) -> float:
        """Sets the learning rates of this update; returns that of the first group (NaN without one)."""
        multiplier = 1.0 if self.multiplier is None else self.multiplier(self.updates)
        for group in self.optimizer.param_groups:
            if self.multiplier is None or "initial_lr" not in group:
                continue
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["initial_lr"] * multiplier)
            else:
                group["lr"] = group["initial_lr"] * multiplier
        return float(self.optimizer.param_groups[0].get("initial_lr", math.nan)) * multiplier

    def _over_ranks(self, loss: Tensor) -> Tensor:
        return self.context.sum_over_ranks(loss) / self.context.world_size

    # ---------------------------------------------------------------- evaluation and checkpoints

    def prepare_for_eval(self) -> None:
        if self._batch_norm is not None:
            self.optimizer.eval()  # type: ignore[attr-defined]
            self._batch_norm.recompute(self.context)

    def resume_training(self) -> None:
        if self._batch_norm is not None:
            self.optimizer.train()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


class BaseOptimizer(Optimizer):
    """The mathematics of an update, and nothing else. A `torch.optim.Optimizer` that can be used anywhere.

    An author passes the options to `super().__init__(params, dict(lr=lr, ...))` and writes `update_` for one parameter;
    `init_state` where there is state; `check_options` to refuse options. `update_all` may be overridden to update all
    parameters of a group at once. The learning rate may be a number or a 0-d tensor.

    Where a kernel has the same mathematics, `update_fused` calls it; it then updates, on a CUDA device, the parameters for
    which `kernel_takes` holds. States are the same on both paths. A subclass that defines other mathematics (`update_`,
    `update_all`, `rule`) without an `update_fused` of its own has no kernel.

    Parameters without a gradient are skipped. Every parameter's state holds `step`, a 0-d tensor on its device that
    counts its updates and is 1 in the first. Loaded state keeps its dtype (`torch.optim` casts it to the parameter's).
    """

    def init_state(self, param: Tensor) -> dict[str, Any]:  # noqa: ARG002
        """The state of one parameter before its first update."""
        return {}

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Updates one parameter and its state in place, without gradient tracking."""
        raise NotImplementedError(f"{type(self).__name__} must define `update_`, `update_all` or `step`.")

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        """Updates all parameters of a group that have gradients."""
        for param, grad, state in zip(params, grads, states, strict=True):
            self.update_(param, grad, state, group)

    def update_fused(self, update: FusedUpdate) -> None:
        """The same by a kernel, for the parameters that it takes; their gradients are to be multiplied by `grad_scale`."""
        raise NotImplementedError

    def kernel_takes(self, param: Tensor) -> bool:
        """Whether the kernel can update a parameter; the others are left to `update_all`."""
        return param.dtype in DTYPES and is_dense(param)

    def check_options(self, group: dict[str, Any]) -> None:
        """Raises `ValueError` for an option of a parameter group that cannot be used. By default `lr` must be >= 0."""
        require_non_negative(lr=group.get("lr", 0.0))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            if param.is_complex():
                raise ValueError(f"{type(self).__name__} does not support complex parameters.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, grad_scale: Tensor | None = None) -> Any:
        """One update of all parameters that have a gradient. Returns the value of the closure, if one is given.

        Args:
            grad_scale: a 0-d tensor, beside the parameters, that all gradients are multiplied with; they stay as they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                grads, states = [self._dense(param) for param in params], self._states(params)
                if self.is_fused:
                    params, grads, states = self._fuse(number, params, grads, states, grad_scale)
                _count(states)
                if grad_scale is not None and grads:
                    grads = list(torch._foreach_mul(grads, grad_scale))
                self.update_all(params, grads, states, group)
        return loss

    @property
    def is_fused(self) -> bool:
        """Whether kernels update the parameters, as far as they take them."""
        if not _has_kernel(type(self)) or torch.compiler.is_compiling():
            return False
        device = next((param.device for group in self.param_groups for param in group["params"]), torch.device("cpu"))
        return registry.updates_fused(device)

    def _fuse(
        self,
        number: int,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        grad_scale: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor], list[dict[str, Any]]]:
        """Updates what the kernel takes of the parameters of a group; returns the others, their gradients and states."""
        groups: dict[int, KeptGroup] = self.__dict__.setdefault("_kept_groups", {})  # not there in a copy
        kept = groups.get(number)
        if kept is None or not kept.is_of(params):
            takes = [param.device == params[0].device and self.kernel_takes(param) for param in params]
            taken, left = ([i for i, is_taken in enumerate(takes) if is_taken is wanted] for wanted in (True, False))
            kept = groups[number] = KeptGroup(params, taken, left)
        if kept.taken:
            update = FusedUpdate(
                tuple([params[i] for i in kept.taken]),
                tuple([grads[i] for i in kept.taken]),
                tuple([states[i] for i in kept.taken]),
                self.param_groups[number],
                grad_scale,
                kept.values,
            )
            update.packed("step").add_(1)
            self.update_fused(update)
        return [params[i] for i in kept.left], [grads[i] for i in kept.left], [states[i] for i in kept.left]

    def _dense(self, param: Tensor) -> Tensor:
        grad = param.grad
        assert grad is not None
        if grad.layout is not torch.strided:
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients (parameter of shape {tuple(param.shape)}). "
                "Build the embedding with sparse=False."
            )
        return grad

    def _states(self, params: list[Tensor]) -> list[dict[str, Any]]:
        states = []
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=state_dtype(param), device=param.device)
                state.update(self.init_state(param))
            states.append(state)
        return states

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave. Tensors among the options keep their identity, state its dtype."""
        before = [
            {name: item for name, item in group.items() if isinstance(item, Tensor)} for group in self.param_groups
        ]
        super().load_state_dict(state_dict)
        self.__dict__.pop("_kept_groups", None)
        for group, saved, tensors in zip(self.param_groups, state_dict["param_groups"], before, strict=True):
            for name, tensor in tensors.items():
                group[name] = tensor.copy_(torch.as_tensor(saved[name]))
            for param, index in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(index, {}).items():
                    if isinstance(value, Tensor):
                        self.state[param][name] = value.to(param.device, copy=True)
                        if _has_kernel(type(self)) and self.kernel_takes(param) and value.shape == param.shape:
                            # Kernels read both in the order of memory, which a file need not have kept.
                            self.state[param][name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


def _count(states: Sequence[dict[str, Any]]) -> None:
    if states:
        torch._foreach_add_([state["step"] for state in states], 1)


def _has_kernel(optimizer_class: type[BaseOptimizer]) -> bool:
    """Whether the class that says what an update is also says which kernel does the same."""
    for base in optimizer_class.__mro__:
        if base is BaseOptimizer:
            return False
        if "update_fused" in base.__dict__:
            return True
        if _MATHEMATICS & base.__dict__.keys():
            return False
    return False


_MATHEMATICS = {"step", "update_", "update_all", "rule"}

# ---------------------------------------------------------------- options


def require_non_negative(**options: Any) -> None:
    """Raises `ValueError` for the first option that is not a number >= 0; entries of tuples are checked each."""
    _require("must be >= 0", lambda value: value >= 0, options)


def require_positive(**options: Any) -> None:
    _require("must be > 0", lambda value: value > 0, options)


def require_fraction(**options: Any) -> None:
    _require("must be in [0, 1)", lambda value: 0 <= value < 1, options)


def _require(rule: str, holds: Callable[[float], bool], options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if isinstance(value, tuple | list):
            _require(rule, holds, {f"{name}[{i}]": item for i, item in enumerate(value)})
        elif isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            raise TypeError(f"Invalid {name}={value!r}: must be a number.")
        elif not holds(float(value)):
            raise ValueError(f"Invalid {name}={float(value) if isinstance(value, Tensor) else value}: {rule}.")


def _accepts(optimizer_class: type[Optimizer], options: Mapping[str, Any]) -> bool:
    """Whether the constructor takes these options for one small matrix: then not they are what it refused."""
    try:
        optimizer_class([nn.Parameter(torch.zeros(2, 2))], **options)
    except Exception:  # noqa: BLE001 - whatever a foreign constructor raises is a refusal
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------- random state


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
