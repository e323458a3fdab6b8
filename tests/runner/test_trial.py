"""The loop: when it evaluates, when it stops, what it charges, what it writes, and how it goes on."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import pytest
import torch

from algoperf_torch.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Preempted,
    SubmissionError,
    TrainingComplete,
)
from algoperf_torch.optim.base import OptimizerAlgorithm
from algoperf_torch.runner import checkpoint
from algoperf_torch.runner.status import Status
from algoperf_torch.workloads.layers import dropout_rates

SGD = OptimizerAlgorithm.over(torch.optim.SGD)


class Idle(SGD):
    """Draws batches and learns nothing."""

    calls: list[str]

    def training_step(self, batch):
        self.calls.append("step")

    def prepare_for_eval(self):
        self.calls.append("prepare")

    def resume_training(self):
        self.calls.append("resume")


@pytest.fixture
def idle():
    return type("IdleAlgorithm", (Idle,), {"calls": []})


def rows(trial, name="eval_measurements.csv"):
    with (trial.record.directory / name).open(newline="") as file:
        return list(csv.DictReader(file))


def steps(trial):
    return [int(row["global_step"]) for row in rows(trial)]


NEVER = {"validation_target": 2.0, "test_target": 2.0}


def test_it_evaluates_after_the_first_step_then_every_period(make_trial, idle):
    trial = make_trial(idle, eval_period=1.0, max_steps=35, terms=NEVER, hparams=("lr=0.1",))
    assert trial.run() is Status.BUDGET_EXHAUSTED
    assert steps(trial) == [1, 11, 21, 31, 35]  # a tenth of a second a step; the last when the steps are used up


def test_hooks_surround_every_evaluation_but_the_last(make_trial, idle):
    trial = make_trial(idle, eval_period=1.0, max_steps=12, terms=NEVER, hparams=("lr=0.1",))
    trial.run()
    assert idle.calls == ["step", "prepare", "resume", *["step"] * 10, "prepare", "resume", "step", "prepare"]


def test_versions_without_hooks_do_not_call_them(make_trial, idle):
    trial = make_trial(
        idle, eval_period=1.0, max_steps=12, terms=NEVER, protocol={"prepare_hook": False}, hparams=("lr=0.1",)
    )
    trial.run()
    assert set(idle.calls) == {"step"}


def test_no_evaluation_once_the_budget_is_used_up(make_trial, idle):
    trial = make_trial(idle, eval_period=1.0, budget="2.5s", max_steps=None, terms=NEVER, hparams=("lr=0.1",))
    assert trial.run() is Status.BUDGET_EXHAUSTED
    assert steps(trial) == [1, 11, 21]
    assert trial.state.step == 25  # the budget is a deadline, also between evaluations
    assert all(float(row["score"]) < 2.5 for row in rows(trial))


def test_the_early_version_grants_an_evaluation_that_is_due_in_the_last_step(make_trial, idle):
    protocol = {"late_evaluation": True, "prepare_hook": False}
    trial = make_trial(
        idle, eval_period=1.0, budget="2.1s", max_steps=None, terms=NEVER, protocol=protocol, hparams=("lr=0.1",)
    )
    trial.run()
    assert steps(trial) == [1, 11, 21]
    assert float(rows(trial)[-1]["score"]) >= 2.1


def test_the_hook_is_charged_before_the_budget_is_tested(make_trial, idle):
    def slow(self):
        time.sleep(0.3)

    algorithm = type("SlowHook", (idle,), {"prepare_for_eval": slow})
    trial = make_trial(
        algorithm, clock="real", eval_period=100.0, budget="0.2s", max_steps=None, terms=NEVER, hparams=("lr=0.1",)
    )
    assert trial.run() is Status.BUDGET_EXHAUSTED
    assert not (trial.record.directory / "eval_measurements.csv").exists()
    assert trial.state.submission_seconds >= 0.3


def test_evaluation_and_logging_are_not_charged(make_trial, idle):
    trial = make_trial(idle, clock="real", eval_period=0.001, max_steps=5, terms=NEVER, hparams=("lr=0.1",))
    started = time.perf_counter()
    trial.run()
    wall = time.perf_counter() - started
    last = rows(trial)[-1]
    assert float(last["accumulated_submission_time"]) < wall / 3
    assert float(last["accumulated_eval_time"]) > 0
    assert float(rows(trial)[0]["accumulated_logging_time"]) == 0
    assert float(last["accumulated_logging_time"]) > 0
    charged = sum(float(last[f"accumulated_{part}_time"]) for part in ("submission", "eval", "logging"))
    assert charged <= float(last["total_duration"]) <= wall + 0.5


def test_it_stops_at_the_validation_target_or_goes_on_to_the_test_target(make_trial, idle):
    targets = {"validation_target": 0.0, "test_target": 2.0}
    given = {"eval_period": 1.0, "max_steps": 30, "terms": targets, "hparams": ("lr=0.1",)}
    trial = make_trial(idle, name="a", **given, protocol={"stop_at": "validation"})
    assert trial.run() is Status.REACHED
    assert steps(trial) == [1]
    trial = make_trial(idle, **given, study=1, protocol={"stop_at": "both"})
    assert trial.run() is Status.REACHED  # it did, though it went on
    assert steps(trial) == [1, 11, 21, 30]
    assert trial.state.validation_step == 1
    assert trial.state.test_step is None


def test_the_target_is_compared_strictly(make_trial, idle):
    first = make_trial(idle, max_steps=1, terms=NEVER, hparams=("lr=0.1",))
    first.run()
    value = float(rows(first)[0]["validation/accuracy"])
    exact = {"validation_target": value, "test_target": 2.0}
    trial = make_trial(idle, study=1, max_steps=1, terms=exact, hparams=("lr=0.1",))
    assert trial.run() is Status.BUDGET_EXHAUSTED


@pytest.mark.parametrize("how", ["exception", "finish"])
def test_a_submission_ends_its_trial_with_one_last_evaluation(make_trial, idle, how):
    def training_step(self, batch):
        if self.context.step == 6:
            if how == "exception":
                raise TrainingComplete
            self.context.finish()

    algorithm = type("Ending", (idle,), {"training_step": training_step})
    trial = make_trial(algorithm, eval_period=100.0, terms=NEVER, hparams=("lr=0.1",))
    assert trial.run() is Status.BUDGET_EXHAUSTED
    assert steps(trial) == [1, 7]


def test_official_columns(make_trial, idle):
    trial = make_trial(idle, max_steps=1, terms=NEVER, hparams=("lr=0.1",))
    trial.run()
    path = trial.record.directory / "eval_measurements.csv"
    header = path.read_text().splitlines()[0].split(",")
    metrics = [f"{prefix}/{name}" for prefix in ("train", "validation", "test") for name in ("accuracy", "loss")]
    times = ["eval", "logging", "submission"]
    expected = [*(f"accumulated_{part}_time" for part in times), "global_step", "preemption_count", "score"]
    expected += [*metrics, "total_duration", "test/num_examples", "validation/num_examples"]
    assert header == sorted(expected)


def test_scalars_of_the_submission_stand_in_their_own_rows(make_trial, idle):
    def training_step(self, batch):
        self.context.log("grad_norm", torch.tensor(float(self.context.step)))

    algorithm = type("Logging", (idle,), {"training_step": training_step})
    trial = make_trial(algorithm, eval_period=0.3, max_steps=4, terms=NEVER, hparams=("lr=0.1",))
    trial.run()
    table = rows(trial, "measurements.csv")
    assert [row["grad_norm"] for row in table] == ["0.0", "", "1.0", "2.0", "3.0", "", ""]
    final = {name: value for name, value in table[-1].items() if value}
    assert set(final) == {"global_step", "preemption_count", "score"}


def test_submissions_see_earlier_results(make_trial, idle):
    trial = make_trial(idle, eval_period=1.0, max_steps=12, terms=NEVER, hparams=("lr=0.1",))
    trial.run()
    assert [step for step, _ in trial.context.eval_results] == [1, 11, 12]
    assert "validation/accuracy" in trial.context.eval_results[0][1]


@pytest.mark.parametrize("where", ["select_batch", "training_step", "prepare_for_eval", "resume_training"])
@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(0), KeyError("x")], ids=repr)
def test_whatever_a_submission_raises_is_the_submissions_error(make_trial, idle, where, error):
    def broken(self, *_):
        raise error

    algorithm = type("Broken", (idle,), {where: broken})
    trial = make_trial(algorithm, terms=NEVER, hparams=("lr=0.1",))
    with pytest.raises(SubmissionError, match=type(error).__name__):
        trial.run()


def test_running_out_of_memory_is_told_apart(make_trial, idle):
    def training_step(self, batch):
        torch.empty(2**60)

    trial = make_trial(type("Huge", (idle,), {"training_step": training_step}), terms=NEVER, hparams=("lr=0.1",))
    with pytest.raises(MemoryError):
        trial.run()


def test_a_metric_that_is_not_a_number_ends_the_trial_where_the_version_says_so(make_trial, idle, monkeypatch):
    trial = make_trial(idle, eval_period=1.0, terms=NEVER, hparams=("lr=0.1",), max_steps=12)
    monkeypatch.setattr(trial.engine.workload, "metrics", lambda *_: {"accuracy": math.nan, "loss": 1.0})
    with pytest.raises(DivergedError, match="validation/accuracy"):
        trial.run()
    assert steps(trial) == [1]  # the row that shows it is written
    official = {"end_on_divergence": False}
    trial = make_trial(
        idle, study=1, eval_period=1.0, terms=NEVER, protocol=official, hparams=("lr=0.1",), max_steps=12
    )
    monkeypatch.setattr(trial.engine.workload, "metrics", lambda *_: {"accuracy": math.nan, "loss": 1.0})
    assert trial.run() is Status.BUDGET_EXHAUSTED
    assert steps(trial) == [1, 11, 12]


def test_an_error_of_the_evaluation_is_not_swallowed(make_trial, idle, monkeypatch):
    trial = make_trial(idle, terms=NEVER, hparams=("lr=0.1",))

    def broken(*_args, **_more):
        raise RuntimeError("evaluation broke")

    monkeypatch.setattr(trial.engine.workload, "metric_sums", broken)
    with pytest.raises(RuntimeError, match="evaluation broke"):
        trial.run()


def test_an_error_of_the_data_is_told_apart(make_trial, idle):
    trial = make_trial(idle, terms=NEVER, hparams=("lr=0.1",))

    def broken(draw):
        raise DataError("record 3 is damaged")

    trial.stream._make_batch = broken
    with pytest.raises(DataError, match="record 3"):
        trial.run()


def test_a_request_to_stop_saves_and_the_next_process_goes_on_exactly(make_trial):
    given = {"eval_period": 1.0, "max_steps": 30, "terms": NEVER}
    whole = make_trial(**given)
    whole.run()
    expected = (whole.record.directory / "eval_measurements.csv").read_text()
    parameters = [parameter.clone() for parameter in whole.engine.model.parameters()]
    for stop_at in (1, 10, 11, 17, 29):
        study = {"out": whole.record.directory.parents[3].with_name(f"stopped_at_{stop_at}")}
        first = make_trial(**given, **study)
        step = first.algorithm.training_step

        def stopping(batch, first=first, step=step, stop_at=stop_at):
            step(batch)
            first.stop.requested = first.context.step == stop_at - 1

        first.algorithm.training_step = stopping
        with pytest.raises(Preempted):
            first.run()
        assert first.state.step == stop_at
        release(first)
        second = make_trial(**given, **study)
        assert second.state.step == stop_at
        second.run()
        assert (second.record.directory / "eval_measurements.csv").read_text() == expected
        for actual, wanted in zip(second.engine.model.parameters(), parameters, strict=True):
            assert torch.equal(actual, wanted)


def test_a_dropout_rate_that_was_changed_is_kept(make_trial, idle):
    def training_step(self, batch):
        self.context.set_dropout(0.25)
        trials[-1].stop.requested = self.context.step == 4

    algorithm = type("Changing", (idle,), {"training_step": training_step})
    trials = [make_trial(algorithm, terms=NEVER, hparams=("lr=0.1",))]
    with pytest.raises(Preempted):
        trials[0].run()
    release(trials[0])
    assert dropout_rates(make_trial(algorithm, terms=NEVER, hparams=("lr=0.1",)).engine.model) == [0.25]


def release(trial):
    """What the end of a process does: the lock on the directory goes."""
    import fcntl
    import gc
    import os

    gc.collect()
    for link in Path("/proc/self/fd").iterdir():
        if os.path.realpath(link) == str(trial.record.directory / ".lock"):
            fcntl.flock(int(link.name), fcntl.LOCK_UN)


def test_a_checkpoint_is_there_while_the_trial_runs_and_gone_when_it_ended(make_trial, idle):
    seen = []

    def training_step(self, batch):
        seen.append(checkpoint.latest(trial.record.directory))

    trial = make_trial(
        type("Looking", (idle,), {"training_step": training_step}), terms=NEVER, hparams=("lr=0.1",), max_steps=3
    )
    trial.run()
    assert seen[0] is None
    assert seen[1].name == "checkpoint_000000001.pt"


def test_state_that_cannot_be_saved_is_told_at_the_first_save(make_trial, idle):
    algorithm = type("Odd", (idle,), {"state_dict": lambda self: {"helper": object()}})
    trial = make_trial(algorithm, terms=NEVER, hparams=("lr=0.1",))
    with pytest.raises(CheckpointError, match=r"algorithm\['helper'\]"):
        trial.run()


def test_trial_json_follows_its_schema(make_trial):
    from importlib.resources import files

    import jsonschema

    trial = make_trial(max_steps=2)
    trial.run()
    schema = json.loads((files("algoperf_torch.runner") / "trial.schema.json").read_text())
    value = json.loads((trial.record.directory / "trial.json").read_text())
    jsonschema.validate(value, schema)
    assert value["kernels"] == {"choice": "default", "used": []}
    for name in ("status", "seeds", "process"):
        broken = {key: entry for key, entry in value.items() if key != name}
        with pytest.raises(jsonschema.ValidationError) as error:
            jsonschema.validate(broken, schema)
        assert repr(name) in error.value.message


def test_a_trial_goes_on_with_its_own_choice_of_kernels(make_trial):
    trial = make_trial(max_steps=2, kernels="reference")
    trial.stop.requested = True
    with pytest.raises(Preempted):
        trial.run()
    saved = checkpoint.latest(trial.record.directory)
    checkpoint.load(saved, identity=trial.identity)
    with pytest.raises(CheckpointError, match="its choice of kernels is 'reference', this trial's is 'default'"):
        checkpoint.load(saved, identity={**trial.identity, "choice of kernels": "default"})


def test_microbatches_give_the_same_update(make_trial):
    whole = make_trial(max_steps=3, terms=NEVER, hparams=("lr=0.01", "dropout_rate=0"))
    parts = make_trial(max_steps=3, terms=NEVER, study=1, micro_batch=32, hparams=("lr=0.01", "dropout_rate=0"))
    assert parts.context.num_microbatches == 4
    parts.engine.model.load_state_dict(whole.engine.model.state_dict())
    parts.stream._make_batch = whole.stream._make_batch
    whole.run()
    parts.run()
    for one, other in zip(whole.engine.model.parameters(), parts.engine.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
