"""The clock, and how far ahead the ranks look."""

from __future__ import annotations

import time

import pytest

from algoperf_torch.errors import UsageError
from algoperf_torch.runner.clock import StepClock, WallClock, make_clock, steps_to_next_check


def test_wall_clock_charges_only_what_runs():
    synchronised = []
    clock = WallClock(lambda: synchronised.append(True))
    clock.start()
    time.sleep(0.02)
    clock.stop()
    charged = clock.seconds
    assert 0.02 <= charged < 0.2
    time.sleep(0.02)
    assert clock.seconds == clock.elapsed(1) == charged
    assert len(synchronised) == 2  # where it starts and where it stops, nowhere else


def test_wall_clock_waits_for_the_device_before_it_stops():
    clock = WallClock(lambda: time.sleep(0.03))  # the device is busy for so long
    clock.start()
    clock.stop()
    assert clock.seconds >= 0.03


def test_elapsed_reads_without_waiting_for_the_device():
    waits = []
    clock = WallClock(lambda: waits.append(True))
    clock.start()
    first, second = clock.elapsed(1), clock.elapsed(1)
    assert second >= first > 0
    assert len(waits) == 1


def test_step_clock_charges_steps_and_nothing_else():
    clock = make_clock("steps:0.25", lambda: None)
    clock.start()
    time.sleep(0.01)
    clock.stop()
    assert clock.injected
    assert clock.elapsed(8) == 2.0
    assert isinstance(clock, StepClock)


@pytest.mark.parametrize(
    "text", ["", "fast", "steps", "steps:", "steps:x", "steps:0", "steps:-1", "steps:nan", "steps:inf"]
)
def test_unknown_clocks_are_refused(text):
    with pytest.raises(UsageError, match=r"steps:0\.5"):
        make_clock(text, lambda: None)


@pytest.mark.parametrize("seconds_per_step", [0.001, 0.013, 0.4, 3.0])
@pytest.mark.parametrize("period", [10.0, 120.0, 2571.0])
def test_the_first_eligible_step_is_hit_within_a_step_or_one_percent(seconds_per_step, period):
    step, checks = 0, 0
    while step * seconds_per_step < period:
        step += steps_to_next_check(period - step * seconds_per_step, seconds_per_step, 0.01 * period)
        checks += 1
    lateness = step * seconds_per_step - period
    assert lateness <= max(seconds_per_step, 0.01 * period)
    assert checks <= 30 + period / 2.4  # a check every few seconds at most, and some more near the end


def test_with_an_exact_clock_the_first_eligible_step_is_hit_exactly():
    step = 0
    while step * 0.5 < 37.0:
        step += steps_to_next_check(37.0 - step * 0.5, 0.5, 0.0)
    assert step == 74


def test_a_step_time_that_grows_fourfold_is_noticed_in_time():
    step, now, estimate, period = 0, 0.0, 0.01, 60.0
    while now < period:
        ahead = steps_to_next_check(period - now, estimate, 0.01 * period)
        estimate = 0.01 if now < 30 else 0.04
        step, now = step + ahead, now + ahead * estimate
    assert now - period < 4 * 0.01 * period
