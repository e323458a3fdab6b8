"""Submissions that have nothing to hide raise no flag, however they are built, threaded, compiled and distributed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from algoperf_torch.optim import registry
from algoperf_torch.workloads.digits.workload import DigitsWorkload

NOISE = frozenset({"step_time", "calibration", "data_stall"})  # this machine was busy while the test ran
SUBMISSIONS = [*registry.algorithm_names(), *(f"{wrapper}:nadamw" for wrapper in registry.WRAPPERS)]


@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_registered_submission(submission, attack):
    outcome = attack(submission=submission, max_steps=8, clock="steps:0.1", eval_period=0.25)
    assert outcome.exit_code == 0
    assert outcome.flags == {}


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "LBFGS"])
def test_optimizer_of_torch(optimizer, attack):
    outcome = attack(submission=f"torch.optim:{optimizer}", hparams=("lr=0.01",), max_steps=6)
    assert outcome.flags == {}


def test_prefetching_stream_and_several_threads(attack, monkeypatch):
    monkeypatch.setattr(DigitsWorkload, "prefetch_depth", 2)
    outcome = attack(threads=2, max_steps=20, eval_period=0.05)
    assert outcome.flags == {}


def test_pool_of_threads_that_rests(attack):
    """A submission may compute with threads of its own, as long as they rest when the clock does."""
    outcome = attack(
        """
        def __init__(self, model, hyperparameters, context):
            super().__init__(model, hyperparameters, context)
            from concurrent.futures import ThreadPoolExecutor
            self.pool = ThreadPoolExecutor(2)

        def training_step(self, batch):
            super().training_step(batch)
            list(self.pool.map(torch.linalg.qr, [torch.eye(32)] * 4))
        """
    )
    assert outcome.flags == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_trial(ranks, tmp_path):
    """Inductor's threads and processes, gloo's threads, two processes on the same cores."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["-m", "algoperf_torch.run", "--workload", "digits", "--submission", "nadamw", "--seed", "3"]
    done = run([*command, "--out", str(tmp_path), "--max-steps", "60", "--eval-period", "0.3"])
    assert done.returncode == 0, done.stderr
    summary = summary_of(tmp_path)
    assert {flag["name"] for flag in summary["validity"]["flags"]} <= NOISE, summary["validity"]["flags"]
    assert summary["validity"]["compilations"]["harness"]["seconds"] > 0
    assert not summary["void"]


STOPPING = """
import os
import torch
from algoperf_torch import OptimizerAlgorithm

class Submission(OptimizerAlgorithm):
    optimizer_class = torch.optim.AdamW

    def training_step(self, batch):
        super().training_step(batch)
        if self.updates == 3 and not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.kill(os.getpid(), 15)
"""


@pytest.mark.slow
def test_stopped_and_resumed_trial(tmp_path):
    (tmp_path / "stopping.py").write_text(STOPPING)
    command = [sys.executable, "-m", "algoperf_torch.run", "--workload", "digits", "--submission", "stopping.py"]
    command += ["--out", str(tmp_path / "runs"), "--no-compile", "--max-steps", "6", "--eval-period", "0.05"]
    command += ["--clock", "steps:0.1", "--seed", "3"]
    assert run(command, cwd=tmp_path).returncode == 75
    assert summary_of(tmp_path)["status"] == "preempted"
    done = run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    section = summary_of(tmp_path)["validity"]
    assert {flag["name"] for flag in section["flags"]} <= NOISE, section["flags"]
    assert [row["step"] for row in section["intervals"]] == [1, 2, 3, 4, 5, 6]


def run(command, cwd=None):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=800)


def summary_of(out):
    (path,) = out.rglob("trial.json")
    return json.loads(path.read_text())
