"""Copies of the metrics for TensorBoard and Weights & Biases."""

from __future__ import annotations

import sys

import pytest

from algoperf_torch.errors import UsageError
from algoperf_torch.runner.options import RunOptions
from algoperf_torch.runner.trackers import Trackers

ROW = {"validation/accuracy": 0.5, "score": 1.25}


def options(**more):
    return RunOptions(workload="digits", submission="nadamw", **more)


def test_without_flags_nothing_is_written(tmp_path):
    trackers = Trackers(options(), tmp_path)
    trackers.log(1, ROW)
    trackers.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_logged(tmp_path):
    trackers = Trackers(options(tensorboard=True), tmp_path)
    trackers.log(7, ROW)
    trackers.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Scalars("validation/accuracy")
    assert (event.step, event.value) == (7, 0.5)


@pytest.mark.parametrize(("flag", "package"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_told_with_what_to_install(tmp_path, monkeypatch, flag, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"pip install {flag}"):
        Trackers(options(**{flag: True}), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_an_offline_run(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    trackers = Trackers(options(wandb=True), tmp_path)
    trackers.log(3, ROW)
    trackers.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
