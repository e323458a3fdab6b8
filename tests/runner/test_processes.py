"""Whole trials as processes: several ranks, kills at any moment, resuming, requests to stop."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from algoperf_torch.runner.record import read_heartbeat, read_rows
from algoperf_torch.runner.status import Phase

RUN = [sys.executable, "-m", "algoperf_torch.run"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node=2",
    "-m",
    "algoperf_torch.run",
]
DIGITS = ["--workload", "digits", "--submission", "nadamw", "--seed", "3", "--no-compile"]
EXACT = ["--clock", "steps:0.1", "--deterministic", "--threads", "1"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*arguments: str, launcher: list[str] = RUN, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*launcher, *arguments], env=env, capture_output=True, text=True, check=False, timeout=600)


def directory(out: Path, submission: str = "nadamw") -> Path:
    return out / submission / "study_0" / "digits_pytorch" / "trial_1"


def rows(out: Path, name: str = "eval_measurements.csv") -> list[dict[str, str]]:
    with (directory(out) / name).open(newline="") as file:
        return list(csv.DictReader(file))


def trial_json(out: Path, submission: str = "nadamw") -> dict:
    return json.loads((directory(out, submission) / "trial.json").read_text())


@pytest.mark.parametrize("submission", ["nadamw", "torch.optim:AdamW"])
def test_torchrun_with_two_ranks_reaches_the_target(tmp_path, submission):
    hparams = [] if submission == "nadamw" else ["--hparams", "lr=1e-3"]
    done = run(
        "--workload",
        "digits",
        "--submission",
        submission,
        *hparams,
        "--seed",
        "3",
        "--out",
        str(tmp_path),
        launcher=TORCHRUN,
    )
    assert done.returncode == 0, done.stderr
    (found,) = tmp_path.glob("*/study_0/digits_pytorch/trial_1/trial.json")
    value = json.loads(found.read_text())
    assert value["status"] == "reached", done.stdout
    assert value["process"]["world_size"] == 2
    assert not [flag for flag in value["validity"]["flags"] if flag["severity"] == "void"]


WATCHING = """
import torch
from algoperf_torch import OptimizerAlgorithm

class Watching(OptimizerAlgorithm):
    optimizer_class = torch.optim.AdamW
    def training_step(self, batch):
        super().training_step(batch)
        if self.context.step == 19 and self.context.rank == 0:
            values = [value.detach().clone() for value in self.context.model.parameters()]
            torch.save(values, {path!r})
"""


def test_two_ranks_are_one_rank_on_the_same_global_batch(tmp_path):
    states = {}
    for ranks in (1, 2):
        file, state = tmp_path / f"watching_{ranks}.py", tmp_path / f"state_{ranks}.pt"
        file.write_text(WATCHING.format(path=str(state)))
        done = run(
            *["--workload", "digits", "--submission", f"{file}:Watching", "--name", "w", "--seed", "3", "--no-compile"],
            *[
                "--hparams",
                "lr=1e-3",
                "dropout_rate=0",
                *EXACT,
                "--max-steps",
                "20",
                "--out",
                str(tmp_path / f"runs_{ranks}"),
            ],
            launcher=RUN if ranks == 1 else TORCHRUN,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        states[ranks] = torch.load(state)
    one, two = states[1], states[2]
    assert len(one) == len(two) >= 10
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


IDLE = """
import torch
from algoperf_torch import OptimizerAlgorithm

class Idle(OptimizerAlgorithm):
    optimizer_class = torch.optim.SGD
    def training_step(self, batch):
        pass  # running statistics, too, stay as they are
"""


def test_evaluation_of_two_ranks_equals_that_of_one_to_the_last_bit(tmp_path):
    file = tmp_path / "idle.py"
    file.write_text(IDLE)
    arguments = [
        "--workload",
        "digits",
        "--submission",
        str(file),
        "--name",
        "nadamw",
        "--no-compile",
        "--seed",
        "3",
        "--hparams",
        "lr=1",
    ]
    results = []
    for name, launcher in (("one", RUN), ("two", TORCHRUN)):
        done = run(*arguments, *EXACT, "--max-steps", "1", "--out", str(tmp_path / name), launcher=launcher)
        assert done.returncode == 0, done.stderr
        results.append([value for key, value in rows(tmp_path / name)[0].items() if "/" in key])
    assert results[0] == results[1]


def test_deterministic_runs_are_bitwise_equal(tmp_path):
    texts = []
    for name in ("a", "b"):
        done = run(*DIGITS, *EXACT, "--max-steps", "25", "--eval-period", "0.5", "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        texts.append((directory(tmp_path / name) / "eval_measurements.csv").read_text())
    assert texts[0] == texts[1]
    other = run(
        *DIGITS, *EXACT, "--max-steps", "25", "--eval-period", "0.5", "--out", str(tmp_path / "c"), "--trial", "2"
    )
    assert other.returncode == 0, other.stderr


def run_here(arguments: list[str], log: Path) -> None:
    """Runs a trial in a process that has everything imported already; the target of the fork server."""
    from algoperf_torch.run import main

    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os._exit(main(arguments))


PRELOADED = multiprocessing.get_context("forkserver")  # a restart costs a fraction of a second instead of many
PRELOADED.set_forkserver_preload(
    [f"algoperf_torch.{name}" for name in ("run", "runner.execute", "optim.nadamw", "workloads.digits.workload")]
)


def endless(tmp_path: Path) -> list[str]:
    """Options for the version `local` with a target that cannot be reached."""
    file = tmp_path / "endless.toml"
    terms = "[workloads.digits]\nvalidation_target = 2.0\ntest_target = 2.0\n"
    file.write_text(f'inherits = "local"\nname = "endless"\n{terms}')
    return ["--version", str(file)]


def kill_at_random(arguments: list[str], out: Path, rng: random.Random, kills: int) -> int:
    """Starts the trial again and again, killing it without warning at random moments; returns how often it was killed."""
    killed = 0
    log = out.with_name("log.txt")
    while True:
        process = PRELOADED.Process(target=run_here, args=(arguments, log))
        process.start()
        if killed < kills:
            wait_for_training(process.is_alive, out)
            time.sleep(rng.uniform(0.0, 0.4))
            if process.is_alive():
                process.kill()
                killed += 1
        process.join(timeout=300)
        if process.exitcode == 0:
            return killed
        assert process.exitcode == -signal.SIGKILL, log.read_text()


def wait_for_training(alive: Callable[[], bool], out: Path) -> None:
    """Until the process has begun to train, so that the kill lands in a step, an evaluation or a checkpoint."""
    started = time.time()
    while alive():
        beat = read_heartbeat(directory(out) / "heartbeat")
        if beat is not None and beat[2] > started and beat[1] is not Phase.SETUP and beat[1] is not Phase.INIT:
            return
        time.sleep(0.005)


def test_killed_at_random_moments_the_rows_are_those_of_an_uninterrupted_run(tmp_path):
    arguments = [*DIGITS, *endless(tmp_path), *EXACT, "--budget", "800steps", "--eval-period", "2"]
    done = run(*arguments, "--out", str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    killed = kill_at_random(
        [*arguments, "--out", str(tmp_path / "killed")], tmp_path / "killed", random.Random(0), kills=25
    )
    assert killed >= 20  # it may end before the last kills
    for name in ("eval_measurements.csv", "measurements.csv"):
        expected = (directory(tmp_path / "whole") / name).read_text()
        assert (directory(tmp_path / "killed") / name).read_text() == expected
    assert trial_json(tmp_path / "killed")["status"] == trial_json(tmp_path / "whole")["status"]


def test_killed_under_the_real_clock_time_never_goes_back_and_no_row_is_lost(tmp_path):
    steps = ["--budget", "600steps", "--eval-period", "0.05", "--threads", "1"]
    arguments = [*DIGITS, *endless(tmp_path), *steps, "--out", str(tmp_path / "runs")]
    seen: list[list[tuple[int, float]]] = []
    rng = random.Random(1)
    for _ in range(8):
        process = PRELOADED.Process(target=run_here, args=(arguments, tmp_path / "log.txt"))
        process.start()
        wait_for_training(process.is_alive, tmp_path / "runs")
        time.sleep(rng.uniform(0.2, 0.8))
        process.kill()
        process.join()
        if (directory(tmp_path / "runs") / "eval_measurements.csv").exists():
            complete = read_rows(directory(tmp_path / "runs") / "eval_measurements.csv")
            seen.append([(int(row["global_step"]), float(row["score"])) for row in complete])
    assert len(seen) > 4
    tmp_path = tmp_path / "runs"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    final = [(int(row["global_step"]), float(row["score"])) for row in rows(tmp_path)]
    for earlier in seen:
        assert final[: len(earlier)] == earlier
    assert [step for step, _ in final] == sorted({step for step, _ in final})
    assert all(b > a for (_, a), (_, b) in itertools.pairwise(final))
    assert [int(row["preemption_count"]) for row in rows(tmp_path)] == sorted(
        int(row["preemption_count"]) for row in rows(tmp_path)
    )


@pytest.mark.parametrize(
    ("launcher", "number"),
    [(RUN, signal.SIGTERM), (RUN, signal.SIGUSR1), (TORCHRUN, signal.SIGTERM)],
    ids=["one rank", "one rank, warned by a batch system", "two ranks"],
)
def test_a_request_to_stop_saves_and_exits_with_its_own_status(tmp_path, launcher, number):
    arguments = [*DIGITS, *endless(tmp_path), "--eval-period", "0.5", "--budget", "300s", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*launcher, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    wait_for_training(lambda: process.poll() is None, tmp_path)
    time.sleep(1.5)
    process.send_signal(number)
    status = process.wait(timeout=60)
    assert status == 75 or launcher is TORCHRUN  # torchrun has a status of its own
    value = trial_json(tmp_path)
    assert (value["status"], value["void"]) == ("preempted", True)
    assert list(directory(tmp_path).glob("checkpoint_*.pt"))
    done = run(
        *arguments[:-2], "--max-steps", str(value["result"]["steps"] + 5), "--out", str(tmp_path), launcher=launcher
    )
    assert done.returncode == 0, done.stderr
    assert trial_json(tmp_path)["preemption_count"] == 1


ENDS = """
import os, signal, sys, time
import torch
from algoperf_torch import OptimizerAlgorithm

class Ends(OptimizerAlgorithm):
    optimizer_class = torch.optim.SGD
    def training_step(self, batch):
        super().training_step(batch)
        if self.context.step == 3 and self.context.rank == {rank}:
            {action}
"""


def test_the_failure_of_another_rank_is_told_by_rank_zero(tmp_path):
    file = tmp_path / "ends.py"
    file.write_text(ENDS.format(rank=1, action="raise ValueError('rank one broke')"))
    arguments = [
        "--workload",
        "digits",
        "--submission",
        str(file),
        "--name",
        "ends",
        "--no-compile",
        "--hparams",
        "lr=0.1",
    ]
    run(*arguments, "--out", str(tmp_path / "runs"), launcher=TORCHRUN)
    value = trial_json(tmp_path / "runs", "ends")
    assert value["status"] == "submission_error"
    assert "rank one broke" in value["error"]["message"]
    assert value["void"] is False


def test_two_processes_cannot_run_one_trial(tmp_path):
    arguments = [*DIGITS, *endless(tmp_path), "--budget", "300s", "--out", str(tmp_path)]
    first = subprocess.Popen([*RUN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_training(lambda: first.poll() is None, tmp_path)
        second = run(*arguments)
        assert second.returncode == 2
        assert "running in another process" in second.stderr
    finally:
        first.kill()
        first.wait()
