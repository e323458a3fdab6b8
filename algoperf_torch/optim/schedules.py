"""Learning-rate schedules: functions from the number of updates done to a multiplier of the base learning rate.

`make_schedule` binds one to a trial. The multiplier is a host number; it is written into the learning-rate *tensor* of
an optimizer, so that a compiled or captured update never sees a new constant.

`steps` is the length of the schedule (the step hint times `step_hint_factor`), `warmup_steps` its first part. After
`steps` every schedule stays where it ended.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

from algoperf_torch.errors import HyperparameterError, UnknownNameError

Schedule = Callable[[int], float]


def constant(step: int, *, steps: int, warmup_steps: int) -> float:  # noqa: ARG001
    """Linear to 1 over the warm-up (1 / warmup_steps at the first update), then 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def cosine(step: int, *, steps: int, warmup_steps: int) -> float:
    """Linear from 1e-10 to 1 over the warm-up, then half a cosine to 0: the reference's schedule for Adam."""
    if step < warmup_steps:
        return 1e-10 + (1.0 - 1e-10) * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(
    step: int, *, steps: int, warmup_steps: int, decay_steps_factor: float = 1.0, end_factor: float = 0.0
) -> float:
    """Linear from 0 to 1 over the warm-up, then linear to `end_factor`: the reference's schedule for SGD.

    The decay takes floor((steps - warmup_steps) x decay_steps_factor) updates.
    """
    if step < warmup_steps:
        return step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, int((steps - warmup_steps) * decay_steps_factor)))
    return 1.0 + (end_factor - 1.0) * progress


def trapezoidal(step: int, *, steps: int, warmup_steps: int, cooldown_factor: float = 0.2) -> float:
    """Warm-up as in `constant`, then 1, then linear to 0 over the last `cooldown_factor` of all steps.

    Hägele et al. (2024), arXiv:2405.18392, section 3.
    """
    cooldown_steps = max(1, round(steps * cooldown_factor))
    remaining = (steps - step) / cooldown_steps
    return max(0.0, min(constant(step, steps=steps, warmup_steps=warmup_steps), remaining))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "trapezoidal": trapezoidal,
}
DEFAULT_WARMUP_FACTOR = {"constant": 0.0}  # of the steps; 0.05 for the others
_LENGTHS = ("warmup_factor", "warmup_steps", "step_hint_factor")


def schedule_options(name: str) -> tuple[str, ...]:
    """Hyperparameters that a schedule takes. Raises `UnknownNameError`."""
    if name not in SCHEDULES:
        raise UnknownNameError("schedule", name, SCHEDULES)
    own = inspect.signature(SCHEDULES[name]).parameters
    return _LENGTHS + tuple(option for option in own if option not in ("step", "steps", "warmup_steps"))


def make_schedule(name: str, step_hint: int, options: Mapping[str, float]) -> Schedule | None:
    """The schedule of a trial, or `None` where the multiplier is always 1.

    Args:
        name: a key of `SCHEDULES`.
        step_hint: steps within the budget.
        options: hyperparameters among `schedule_options(name)`. `warmup_steps` is a number of updates, `warmup_factor`
            the same as a fraction of all steps; at most one of them.
    """
    known = schedule_options(name)
    given = dict(options)
    for option, value in given.items():
        if option not in known:
            raise HyperparameterError(f"Schedule {name!r} does not take {option!r}. It takes: {', '.join(known)}.")
        if not value >= 0:
            raise HyperparameterError(f"Invalid {option}={value!r}: must be >= 0.")
        if option in ("warmup_factor", "decay_steps_factor", "cooldown_factor") and value > 1:
            raise HyperparameterError(f"Invalid {option}={value!r}: must be in [0, 1].")
    if "warmup_steps" in given and "warmup_factor" in given:
        raise HyperparameterError("Both warmup_steps and warmup_factor are given. Keep one of them.")
    steps = max(1, int(step_hint * given.pop("step_hint_factor", 1.0)))
    factor = given.pop("warmup_factor", DEFAULT_WARMUP_FACTOR.get(name, 0.05))
    warmup_steps = int(given.pop("warmup_steps", factor * steps))
    if name == "constant" and not warmup_steps:
        return None
    function = SCHEDULES[name]
    return lambda step: function(step, steps=steps, warmup_steps=warmup_steps, **given)
