"""Schedules against the schedulers of torch and the formulas of the rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

from algoperf_torch.errors import HyperparameterError, UnknownNameError
from algoperf_torch.optim.schedules import SCHEDULES, make_schedule, schedule_options


def reference_cosine(steps, warmup_steps, length):
    """The reference's chain of torch schedulers, read after every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=1e-10, end_factor=1.0, total_iters=warmup_steps)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps - warmup_steps, 1))
    chain = lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])
    values = []
    for _ in range(length):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        chain.step()
    return values


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # raised inside SequentialLR
@pytest.mark.parametrize("factor", [0.02, 0.05, 0.5])
def test_cosine_is_the_reference(factor):
    schedule = make_schedule("cosine", 200, {"warmup_factor": factor})
    expected = reference_cosine(200, int(200 * factor), 200)
    assert [schedule(step) for step in range(200)] == pytest.approx(expected, abs=1e-9)


def test_linear_is_the_formula_of_the_rules():
    options = {"warmup_steps": 10, "decay_steps_factor": 0.9, "end_factor": 0.01}
    schedule = make_schedule("linear", 101, options)
    decay_steps = math.floor(91 * 0.9)
    assert schedule(0) == 0.0
    assert schedule(5) == pytest.approx(0.5)
    assert schedule(10) == 1.0
    assert schedule(10 + decay_steps // 2) == pytest.approx(1 - 0.99 * (decay_steps // 2) / decay_steps)
    assert schedule(10 + decay_steps) == pytest.approx(0.01)
    assert schedule(10_000) == pytest.approx(0.01)


def test_constant_warms_up_and_stays():
    schedule = make_schedule("constant", 100, {"warmup_steps": 4})
    assert [schedule(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert make_schedule("constant", 100, {}) is None


def test_trapezoid_cools_down_at_the_end():
    schedule = make_schedule("trapezoidal", 100, {"warmup_steps": 10, "cooldown_factor": 0.2})
    assert schedule(9) == schedule(50) == schedule(80) == 1.0
    assert schedule(90) == pytest.approx(0.5)
    assert schedule(100) == schedule(150) == 0.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_stays_in_the_unit_interval_and_ends(name):
    schedule = make_schedule(name, 97, {"warmup_factor": 0.1})
    values = [schedule(step) for step in range(300)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert max(values) == 1.0
    assert len(set(values[97:])) == 1


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("step_hint", [1, 2, 3])
def test_tiny_trials_have_finite_multipliers(name, step_hint):
    schedule = make_schedule(name, step_hint, {"warmup_factor": 1.0})
    assert all(math.isfinite(schedule(step)) for step in range(5))


def test_step_hint_factor_shortens_the_schedule():
    schedule = make_schedule("cosine", 400, {"step_hint_factor": 0.5, "warmup_factor": 0.0})
    assert schedule(100) == pytest.approx(0.5)
    assert schedule(200) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cosine", {"end_factor": 0.1}, "Schedule 'cosine' does not take 'end_factor'. It takes: warmup_factor"),
        ("cosine", {"warmup_factor": 1.5}, r"Invalid warmup_factor=1.5: must be in \[0, 1\]"),
        ("linear", {"warmup_steps": -1}, "Invalid warmup_steps=-1: must be >= 0"),
        ("linear", {"warmup_steps": 1, "warmup_factor": 0.1}, "Keep one of them"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(HyperparameterError, match=message):
        make_schedule(name, 100, options)


def test_unknown_schedules_are_refused():
    with pytest.raises(UnknownNameError, match="Unknown schedule 'step'"):
        schedule_options("step")
