"""From one point of a search space to the arguments of an optimizer, of the training step and of the schedule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from algoperf_torch.errors import HyperparameterError
from algoperf_torch.optim.schedules import schedule_options


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What every optimizer's training step can do beside the update; `None` leaves it alone."""

    label_smoothing: float = 0.0
    grad_clip: float | None = None  # largest norm of the whole gradient
    dropout_rate: float | None = None  # None: the workload's own rates

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "dropout_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise HyperparameterError(f"Invalid {name}={value!r}: must be in [0, 1).")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise HyperparameterError(f"Invalid grad_clip={self.grad_clip!r}: must be > 0.")


@dataclass(frozen=True, kw_only=True)
class Options:
    """All hyperparameters of a trial, sorted by who takes them."""

    optimizer: dict[str, Any] = field(default_factory=dict)
    step: StepOptions = field(default_factory=StepOptions)
    schedule: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Alias:
    """An AlgoPerf name for an optimizer's argument, or for one entry of it."""

    argument: str
    index: int | None = None
    convert: Callable[[float], float] = lambda value: value


def _complement(value: float) -> float:
    return 1.0 - value


# The names in AlgoPerf's search spaces. The first alias whose argument the optimizer has is the one that is meant.
ALIASES: dict[str, tuple[Alias, ...]] = {
    "learning_rate": (Alias("lr"),),
    "epsilon": (Alias("eps"),),
    "l2": (Alias("weight_decay"),),
    "beta1": (Alias("betas", 0), Alias("momentum")),
    "beta2": (Alias("betas", 1),),
    "beta3": (Alias("betas", 2),),
    "one_minus_beta1": (Alias("betas", 0, _complement), Alias("momentum", None, _complement)),
    "one_minus_beta_1": (Alias("betas", 0, _complement), Alias("momentum", None, _complement)),
    "one_minus_beta2": (Alias("betas", 1, _complement),),
    "one_minus_momentum": (Alias("momentum", None, _complement), Alias("betas", 0, _complement)),
}


_EITHER = {"warmup_steps": "warmup_factor", "warmup_factor": "warmup_steps"}  # giving one drops the other's default


def constructor_arguments(optimizer_class: type) -> dict[str, inspect.Parameter]:
    """The arguments of an optimizer's constructor that have names, without the first, which takes the parameters."""
    arguments = list(inspect.signature(optimizer_class).parameters.values())[1:]
    return {item.name: item for item in arguments if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}


def sort_hyperparameters(
    hyperparameters: Mapping[str, Any],
    optimizer_class: type,
    *,
    schedule: str,
    label: str,
    defaults: Mapping[str, Any] | None = None,
) -> Options:
    """Sorts hyperparameters by name; a name of the optimizer's constructor goes there whatever else it could mean.

    Args:
        hyperparameters: names of constructor arguments, AlgoPerf's names for them, names of `StepOptions`, options of
            the schedule.
        optimizer_class: its constructor's first argument takes the parameters.
        schedule: name of the schedule.
        label: how messages call the submission.
        defaults: values for what is not given; no AlgoPerf names.

    Raises `HyperparameterError` for names that nobody takes, values of the wrong kind, and missing required ones.
    """
    arguments = constructor_arguments(optimizer_class)
    takes_any = any(item.kind is item.VAR_KEYWORD for item in inspect.signature(optimizer_class).parameters.values())
    step_names, schedule_names = tuple(item.name for item in fields(StepOptions)), schedule_options(schedule)
    chosen = {name: value for name, value in (defaults or {}).items() if name in arguments or takes_any}
    rest = {name: value for name, value in (defaults or {}).items() if name not in chosen}
    current = {name: item.default for name, item in arguments.items() if item.default is not item.empty} | chosen
    set_by: list[tuple[Alias, str]] = []
    for name, value in hyperparameters.items():
        alias = Alias(name) if name in arguments else _find_alias(name, arguments, current)
        if alias is not None:
            for other, other_name in set_by:
                if other.argument == alias.argument and (
                    None in (other.index, alias.index) or other.index == alias.index
                ):
                    raise HyperparameterError(f"{label}: {other_name!r} and {name!r} both set {alias.argument!r}.")
            set_by.append((alias, name))
            if alias.index is not None:
                entries = list(current[alias.argument])
                entries[alias.index] = alias.convert(_number(name, value, label))
                value = tuple(entries)
            elif name != alias.argument:
                value = alias.convert(_number(name, value, label))
            chosen[alias.argument] = current[alias.argument] = _like(name, value, current.get(alias.argument), label)
        elif name in step_names or name in schedule_names:
            if name in _EITHER and _EITHER[name] not in hyperparameters:
                rest.pop(_EITHER[name], None)
            rest[name] = None if value is None and name in step_names else _number(name, value, label)
        elif takes_any:
            chosen[name] = value
        else:
            raise HyperparameterError(
                f"{label} has no hyperparameter {name!r}. "
                f"Accepted: {', '.join((*arguments, *step_names, *schedule_names))}."
            )
    missing = [name for name, item in arguments.items() if item.default is item.empty and name not in chosen]
    if missing:
        raise HyperparameterError(
            f"{label} needs a value for {', '.join(missing)}. Write, for example, --hparams {missing[0]}=1e-3."
        )
    return Options(
        optimizer=chosen,
        step=StepOptions(**{name: rest[name] for name in step_names if rest.get(name) is not None}),
        schedule={name: rest[name] for name in schedule_names if name in rest},
    )


def _find_alias(name: str, arguments: Mapping[str, Any], current: Mapping[str, Any]) -> Alias | None:
    for alias in ALIASES.get(name, ()):
        if alias.argument not in arguments:
            continue
        entries = current.get(alias.argument)
        if alias.index is None or (isinstance(entries, tuple | list) and alias.index < len(entries)):
            return alias
    return None


def _number(name: str, value: Any, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise HyperparameterError(
            f"{label}: hyperparameter {name!r} is {value!r} ({type(value).__name__}). Write a number."
        )
    if not math.isfinite(value):
        raise HyperparameterError(f"{label}: hyperparameter {name!r} is {value!r}. Write a finite number.")
    return value


def _like(name: str, value: Any, example: Any, label: str) -> Any:
    """The value, checked to be of the kind of its argument's default."""
    if isinstance(example, bool):
        if not isinstance(value, bool):
            raise HyperparameterError(
                f"{label}: hyperparameter {name!r} is {value!r} ({type(value).__name__}). Write true or false."
            )
        return value
    if isinstance(example, int | float):
        return _number(name, value, label)
    if isinstance(example, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(example):
            raise HyperparameterError(
                f"{label}: hyperparameter {name!r} is {value!r}. Write a list of {len(example)} values."
            )
        return tuple(_like(f"{name}[{i}]", item, example[i], label) for i, item in enumerate(value))
    return value
