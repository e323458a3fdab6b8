"""The supervisor with real trials of the digits: submissions that fail in every way, ranks that vanish, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from algoperf_torch.runner.record import read_heartbeat, read_rows
from algoperf_torch.runner.status import Phase
from algoperf_torch.runner.supervise import read_attempts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODES = """
import os, signal, time
from pathlib import Path
import torch

class Modes(torch.optim.SGD):
    built = 0

    def __init__(self, params, lr=0.1, mode="train"):
        self.mode, self.steps = mode, 0
        Modes.built += mode == "exit when built"
        if Modes.built == 2:  # the first time, only the hyperparameters are checked
            os._exit(0)
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        self.steps += 1
        rank = int(os.environ.get("RANK", "0"))
        if self.steps == 5:
            if self.mode == "exit":
                os._exit(0)
            if self.mode == "raise":
                raise RuntimeError("boom")
            if self.mode == "hang":
                time.sleep(3600)
            if self.mode == "memory":
                torch.zeros(2**44)
            if self.mode == "second rank exits" and rank == 1:
                os._exit(0)
            if self.mode == "second rank is killed once" and rank == 1 and not Path(__file__).with_name("done").exists():
                Path(__file__).with_name("done").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)
"""


def tune_command(out, submission, *more):
    words = [sys.executable, "-m", "algoperf_torch.cli", "tune", "--submission", str(submission), "--out", str(out)]
    return [*words, "--workloads", "digits", "--studies", "0", "--no-compile", "--probe-steps", "0", *more]


def tune(*arguments):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(tune_command(*arguments), env=env, capture_output=True, text=True, check=False, timeout=800)


@pytest.fixture
def modes(tmp_path):
    """Writes a submission whose points are ways to fail; returns its path."""

    def write(*names):
        path = tmp_path / "modes.py"
        path.write_text(MODES)
        path.with_suffix(".json").write_text(json.dumps([{"lr": 0.1, "mode": name} for name in names]))
        return path

    return write


def summaries(out):
    found = {}
    for path in sorted(out.glob("*/study_0/digits_pytorch/trial_*/trial.json")):
        found[path.parent.name] = json.loads(path.read_text())
    return list(found.values())


def check_schema(summary):
    schema = json.loads((files("algoperf_torch.runner") / "trial.schema.json").read_text())
    jsonschema.validate(summary, schema)


def test_every_way_to_fail_and_the_next_trial_runs(tmp_path, modes):
    submission = modes("exit when built", "exit", "raise", "memory", "train")
    done = tune(tmp_path / "runs", f"{submission}:Modes", "--max-steps", "20", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    found = summaries(tmp_path / "runs")
    assert [(summary["status"], summary["void"]) for summary in found] == [
        ("submission_error", False),
        ("submission_error", False),
        ("submission_error", False),
        ("out_of_memory", False),
        ("budget_exhausted", False),
    ]
    assert [summary["error"]["phase"] for summary in found[:4]] == ["init", "training", "training", "training"]
    for summary in found:
        check_schema(summary)
        assert summary["supervised"]
        assert summary["seeds"]["run"] == 0
        assert summary["supervisor"]["wall_seconds"] > summary["supervisor"]["phase_seconds"]["setup"] > 0
    assert len({summary["seeds"]["trial"] for summary in found}) == 5
    assert not list(tmp_path.rglob("checkpoint_*"))
    again = tune(tmp_path / "runs", f"{submission}:Modes", "--max-steps", "20", "--seed", "0")
    assert again.returncode == 0
    assert "starting" not in again.stdout


def test_a_hanging_step_is_ended_and_told_where(tmp_path, modes):
    done = tune(tmp_path, f"{modes('hang')}:Modes", "--hang-timeout", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = summaries(tmp_path)
    assert (summary["status"], summary["void"]) == ("submission_error", False)
    assert "Hung while in phase training, step 4" in summary["error"]["message"]
    log = next(tmp_path.rglob("output_trial_1.log")).read_text()
    assert "in step" in log
    assert "modes.py" in log  # the stack


def test_a_mistake_in_the_hyperparameters_is_told_before_anything_runs(tmp_path, modes):
    path = modes("train")
    path.with_suffix(".json").write_text('[{"lr": 1, "mode": "train"}, {"lr": "high", "mode": "train"}]')
    done = tune(tmp_path / "runs", f"{path}:Modes")
    assert done.returncode == 2
    assert done.stderr.startswith("algoperf: ")
    assert "'high'" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_rank_that_exits_is_the_submissions_doing(tmp_path, modes):
    done = tune(tmp_path, f"{modes('second rank exits')}:Modes", "--ranks", "2")
    (summary,) = summaries(tmp_path)
    assert (summary["status"], summary["void"]) == ("submission_error", False), done.stdout
    assert summary["process"]["world_size"] == 2


def test_a_rank_that_is_killed_costs_the_algorithm_nothing(tmp_path, modes):
    submission = f"{modes('second rank is killed once')}:Modes"
    done = tune(tmp_path, submission, "--ranks", "2", "--max-steps", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = summaries(tmp_path)
    assert summary["status"] == "budget_exhausted"
    attempts = read_attempts(next(tmp_path.glob("*/study_0/digits_pytorch/trial_1")))
    assert [attempt["status"] for attempt in attempts] == ["preempted", "budget_exhausted"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_supervisor_that_is_stopped_or_killed_goes_on_where_it_was(tmp_path, number):
    exact = ["--clock", "steps:0.05", "--deterministic", "--threads", "1", "--seed", "3", "--trials", "1", "2"]
    out = tmp_path / "interrupted"
    words = tune_command(out, "nadamw", *exact, "--max-steps", "400")
    first = out / "nadamw" / "study_0" / "digits_pytorch" / "trial_1"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not ((beat := read_heartbeat(first / "heartbeat")) and beat[0] > 60 and beat[1] is Phase.TRAINING):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=200) == (-9 if number == signal.SIGKILL else 75)
    done = tune(out, "nadamw", *exact, "--max-steps", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    whole = tune(tmp_path / "whole", "nadamw", *exact, "--max-steps", "400")
    assert whole.returncode == 0, whole.stdout + whole.stderr

    def rows(folder: Path):
        return {
            path.parent.name: read_rows(path)
            for path in folder.glob("nadamw/study_0/digits_pytorch/trial_*/eval_m*.csv")
        }

    assert set(rows(out)) == {"trial_1", "trial_2"}
    assert rows(out) == rows(tmp_path / "whole")
    assert len(read_attempts(first)) == 2
