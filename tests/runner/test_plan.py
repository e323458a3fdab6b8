"""Costs, durations, and what the plan learns of a submission."""

import csv
import dataclasses
import io
import json

import pytest
from rich.console import Console

from algoperf_torch.errors import UsageError
from algoperf_torch.runner.options import Budget
from algoperf_torch.runner.plan import (
    Cost,
    SubmissionFacts,
    TuneOptions,
    cost_of,
    duration,
    facts_of,
    make_plan,
    plan_lines,
    plan_table,
)
from algoperf_torch.spec import Ruleset

COST = Cost(setup=30, first_step=5, step=0.1, first_evaluation=4, evaluation=2)


@pytest.mark.parametrize(
    ("budget", "steps", "seconds"),
    [
        (Budget(100), None, 30 + 100 + 4 + 10 * 2),  # an evaluation every 10 s
        (Budget(1000, 51), None, 30 + (5 + 50 * 0.1) + 4 + (1 + 1) * 2),  # and one at the end
        (Budget(float("inf"), 951), None, 30 + 100 + 4 + (10 + 1) * 2),
        (Budget(100), 51, 30 + 10 + 4 + (1 + 1) * 2),
        (Budget(100), 10**6, 30 + 100 + 4 + (10 + 1) * 2),  # the budget comes first
    ],
)
def test_cost_of_a_trial(budget, steps, seconds):
    assert COST.trial(budget, 10, steps=steps) == pytest.approx(seconds)


def test_periods_shorter_than_a_step():
    assert COST.trial(Budget(1), 0.001) == 30 + 1 + 4 + 10 * 2


def write_trial(folder, rows, **entries):
    summary = {
        "clock": "real",
        "started": 1010.0,
        "process": {"started": 1000.0},
        "setup_seconds": {"data": 1.0, "model": 2.0},
    }
    (folder / "trial.json").write_text(json.dumps({**summary, **entries}))
    with (folder / "eval_measurements.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["accumulated_eval_time", "accumulated_submission_time", "global_step"])
        writer.writeheader()
        for step, submission, evaluation in rows:
            writer.writerow(dict(zip(writer.fieldnames, (evaluation, submission, step), strict=True)))


def test_cost_from_a_trial(tmp_path):
    write_trial(tmp_path, [(1, 5.0, 4.0), (11, 6.0, 6.0), (21, 7.0, 8.0)])
    assert cost_of(tmp_path) == Cost(setup=13, first_step=5, step=0.1, first_evaluation=4, evaluation=2)


@pytest.mark.parametrize(
    ("rows", "entries"),
    [([], {}), ([(1, 5.0, 4.0)], {}), ([(1, 5.0, 4.0), (2, 6.0, 5.0)], {"clock": "steps:1"})],
    ids=["no rows", "one row", "injected clock"],
)
def test_trials_that_tell_no_cost(tmp_path, rows, entries):
    write_trial(tmp_path, rows, **entries)
    assert cost_of(tmp_path) is None


def test_trials_that_have_not_come_far_tell_no_cost(tmp_path):
    (tmp_path / "trial.json").write_text('{"clock": "real"}')
    assert cost_of(tmp_path) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (1.26, "1.3 s"), (59.94, "59.9 s"), (65, "1 min 05 s"), (11520, "3 h 12 min"), (400_000, "4.6 days")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def planned(tmp_path, costs, **others):
    facts = SubmissionFacts(name="fake", digest="d", points={0: [{}, {}], 2: [{}, {}]})
    options = TuneOptions(submission="fake", workloads=("digits",), studies=(0, 2), out=tmp_path, **others)
    return dataclasses.replace(make_plan(options, facts), costs=costs)


def test_totals(tmp_path):
    plan = planned(tmp_path, {"digits": COST}, budget="100s", eval_period=10.0)
    assert plan.seconds("digits") == 30 + 100 + 4 + 10 * 2
    assert plan.total_seconds() == 4 * plan.seconds("digits")
    assert plan.total_seconds(at_hint=True) < plan.total_seconds()
    assert plan_lines(plan, 2)[-1].startswith(f"to run: at most {duration(2 * plan.seconds('digits'))} on this machine")


def test_totals_of_what_is_not_measured(tmp_path):
    plan = planned(tmp_path, {}, budget="100s")
    assert plan.seconds("digits") is None
    assert plan.total_seconds() is None
    assert plan_lines(plan, 1)[-1] == "to run: budgets of 6 min 40 s, set-up and evaluations not counted"


def test_the_table_shows_every_workload(tmp_path):
    console = Console(width=200, file=io.StringIO())
    console.print(plan_table(planned(tmp_path, {"digits": COST}, max_steps=50)))
    shown = console.file.getvalue()
    for cell in ("digits", "accuracy > ", ", 50 steps", "4 of 4", "100 ms", "2.0 s"):
        assert cell in shown


# ---------------------------------------------------------------- the submission, in a process of its own


def options(submission, **others):
    return TuneOptions(submission=str(submission), workloads=("digits",), studies=(0, 2), **others)


def test_facts_of_a_registered_submission(tmp_path):
    space = tmp_path / "space.json"
    space.write_text('[{"lr": 0.1, "betas": [0.9, 0.99]}, {"lr": 0.2, "betas": [0.9, 0.99]}]')
    facts = facts_of(options("nadamw", search_space=space, name="mine"))
    assert facts.name == "mine"
    assert len(facts.digest) == 64
    assert set(facts.points) == {0, 2}
    assert [point["lr"] for point in facts.points[2]] == [0.1, 0.2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "count"),
    [({"hparams": ("lr=0.1",)}, 1), ({"ruleset": Ruleset.SELF}, 1), ({}, 5)],
    ids=["one point given", "self-tuning", "its own space"],
)
def test_number_of_points(others, count):
    facts = facts_of(options("nadamw", **others))
    assert [len(points) for points in facts.points.values()] == [count, count]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os._exit(0)", "ended the process with exit status 0"),
        ("raise RuntimeError('boom')", "boom"),
        ("x = (", "syntax error"),
    ],
)
def test_submissions_that_cannot_be_loaded(tmp_path, code, message):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(UsageError, match=message):
        facts_of(options(path))
