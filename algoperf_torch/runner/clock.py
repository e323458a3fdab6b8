"""The one object that owns submission time."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from algoperf_torch.errors import UsageError


class Clock(Protocol):
    """Seconds charged to the submission. Evaluation, logging and checkpoints happen while it stands."""

    seconds: float  # charged up to the last `stop`

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def elapsed(self, step: int) -> float:
        """Seconds charged so far with `step` steps done, without waiting for the device."""
        ...

    def settle(self, seconds: float) -> None:
        """Sets the time that the ranks agreed on; the clock stands."""
        ...

    @property
    def injected(self) -> bool: ...


class WallClock:
    """Real time. `synchronize` waits for the device where the clock starts and stops, never in between."""

    injected = False

    def __init__(self, synchronize: Callable[[], None], seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._synchronize = synchronize
        self._started: float | None = None

    def start(self) -> None:
        assert self._started is None
        self._synchronize()
        self._started = perf_counter()

    def stop(self) -> None:
        assert self._started is not None
        self._synchronize()
        self.seconds += perf_counter() - self._started
        self._started = None

    def elapsed(self, step: int) -> float:  # noqa: ARG002 - steps cost what they cost
        return self.seconds if self._started is None else self.seconds + perf_counter() - self._started

    def settle(self, seconds: float) -> None:
        assert self._started is None
        self.seconds = seconds


class StepClock:
    """`--clock steps:SECONDS`: every step is charged the same, everything else nothing. For tests and equality claims."""

    injected = True

    def __init__(self, seconds_per_step: float) -> None:
        self.seconds = 0.0
        self._seconds_per_step = seconds_per_step

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def elapsed(self, step: int) -> float:
        return step * self._seconds_per_step

    def settle(self, seconds: float) -> None:
        self.seconds = seconds


def make_clock(text: str, synchronize: Callable[[], None]) -> Clock:
    """`real`, or `steps:SECONDS`. Raises `UsageError` for anything else."""
    if text == "real":
        return WallClock(synchronize)
    kind, _, seconds = text.partition(":")
    try:
        value = float(seconds)
    except ValueError:
        value = 0.0
    if kind != "steps" or not 0.0 < value < float("inf"):
        raise UsageError(f"--clock {text!r} is not a clock. Write 'real', or 'steps:0.5' for half a second a step.")
    return StepClock(value)


CHECK_SECONDS = 5.0  # longest time between two checks: bounds how late a request to stop is seen


def steps_to_next_check(remaining: float, seconds_per_step: float, tolerance: float) -> int:
    """After how many steps the ranks look at the clock again.

    Half of what is left until the next event, so that the first eligible step is hit within one step or `tolerance`
    seconds, whichever is larger, and a change of the step time is seen in time. All times in seconds.
    """
    if seconds_per_step <= 0.0:
        return 1
    jump = min(max(remaining, tolerance) / 2, CHECK_SECONDS)
    return max(1, int(jump / seconds_per_step))
