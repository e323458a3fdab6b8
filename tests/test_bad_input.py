"""Mistakes in the command, the data or the machine: one line of ours, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

PRELOADED = multiprocessing.get_context("forkserver")
PRELOADED.set_forkserver_preload(["algoperf_torch.runner.execute", "algoperf_torch.workloads.digits.workload"])


def start(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    """Runs `algoperf_torch.run` in this process; the target of the fork server."""
    os.environ.update(environment)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from algoperf_torch.run import main

    os._exit(main(arguments))


@pytest.fixture
def run(tmp_path):
    """`run(*arguments, **environment)`: (exit status, everything that was printed)."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        output = tmp_path / "printed.txt"
        process = PRELOADED.Process(target=start, args=(list(arguments), environment, output))
        process.start()
        process.join(timeout=120)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode, output.read_text()

    return run


def write(path: Path, content: str) -> str:
    path.write_text(content)
    return str(path)


DIGITS = ["--workload", "digits", "--no-compile"]
NADAMW = [*DIGITS, "--submission", "nadamw"]

CASES = {
    "unknown workload": (["--workload", "digit", "--submission", "nadamw"], "Unknown workload .*'digit'"),
    "unknown submission": ([*DIGITS, "--submission", "nadam"], "nadam"),
    "submission file missing": ([*DIGITS, "--submission", "{tmp}/none.py:Lion"], "none.py"),
    "submission with a syntax error": ([*DIGITS, "--submission", "{bad_python}"], r"bad\.py.*line 1|bad\.py:1"),
    "submission that is no optimizer": ([*DIGITS, "--submission", "json:JSONDecoder"], "JSONDecoder"),
    "unknown version": ([*NADAMW, "--version", "v9"], "Unknown benchmark version 'v9'"),
    "malformed version file": ([*NADAMW, "--version", "{bad_toml}"], r"bad\.toml"),
    "version file missing": ([*NADAMW, "--version", "{tmp}/none.toml"], r"none\.toml"),
    "malformed search space": ([*NADAMW, "--search-space", "{bad_json}"], r"bad\.json"),
    "search space missing": ([*NADAMW, "--search-space", "{tmp}/none.json"], r"none\.json"),
    "search space without scaling": ([*NADAMW, "--search-space", "{no_scaling}"], "scaling"),
    "empty search space": ([*NADAMW, "--search-space", "{empty_space}"], "empty|no point"),
    "more trials than points": ([*NADAMW, "--search-space", "{one_point}", "--trial", "2"], "only 1 point"),
    "hyperparameter of the wrong type": ([*NADAMW, "--hparams", "lr=fast"], "'lr' is 'fast'.*[Ww]rite a number"),
    "unknown hyperparameter": ([*NADAMW, "--hparams", "learning=0.1"], "no hyperparameter 'learning'"),
    "hyperparameter out of range": ([*NADAMW, "--hparams", "lr=-1"], "lr"),
    "hyperparameter without a value": ([*NADAMW, "--hparams", "lr"], "lr"),
    "point and space": ([*NADAMW, "--hparams", "lr=1", "--search-space", "{one_point}"], "exclude each other"),
    "self-tuning with hyperparameters": ([*NADAMW, "--ruleset", "self", "--hparams", "lr=1"], "has no hyperparameters"),
    "negative study": ([*NADAMW, "--study", "-1"], "numbered from 0"),
    "trial zero": ([*NADAMW, "--trial", "0"], "numbered from 1"),
    "unknown schedule": ([*NADAMW, "--schedule", "spiral"], "schedule 'spiral'"),
    "unknown clock": ([*NADAMW, "--clock", "sundial"], "not a clock"),
    "malformed budget": ([*NADAMW, "--budget", "soon"], "not a budget"),
    "budget of runs that are not there": ([*NADAMW, "--budget", "2x:{tmp}"], "no trial of digits"),
    "evaluation period of zero": ([*NADAMW, "--eval-period", "0"], "positive"),
    "rules changed in an official version": ([*NADAMW, "--version", "v0.6", "--budget", "5s"], "needs --version local"),
    "official version on other hardware": (
        ["--workload", "wmt", "--submission", "nadamw", "--version", "v0.6"],
        "V100",
    ),
    "name with a slash": ([*NADAMW, "--name", "a/b"], "names a directory"),
    "batch that micro-batches do not divide": ([*NADAMW, "--micro-batch", "7"], "does not divide the 128 examples"),
    "no CUDA device": ([*NADAMW, "--device", "cuda"], "no CUDA device"),
    "data that are not there": (["--workload", "mnist", "--submission", "nadamw", "--data-dir", "{tmp}"], "mnist"),
    "no data directory": (["--workload", "mnist", "--submission", "nadamw"], "data-dir|data_dir"),
    "a file where the runs should go": ([*NADAMW, "--out", "{bad_json}"], "bad.json"),
}


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES.keys())
def test_a_mistake_is_told_in_our_words(run, tmp_path, arguments, message):
    names = {
        "tmp": str(tmp_path),
        "bad_python": write(tmp_path / "bad.py", "class Lion(:\n"),
        "bad_toml": write(tmp_path / "bad.toml", "name = \n"),
        "bad_json": write(tmp_path / "bad.json", '{"lr": '),
        "no_scaling": write(tmp_path / "no_scaling.json", '{"lr": {"min": 0.1, "max": 1.0}}'),
        "empty_space": write(tmp_path / "empty.json", "[]"),
        "one_point": write(tmp_path / "one.json", '[{"lr": 0.001}]'),
    }
    arguments = [argument.format(**names) if "{" in argument else argument for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "runs")]
    status, printed = run(*arguments)
    assert status == 2, printed
    ours = [line for line in printed.splitlines() if line.startswith("algoperf: ")]
    assert len(ours) == 1, printed
    import re

    assert re.search(message, printed), printed
    assert "Traceback" not in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
    ],
    ids=["not a number", "rank too large", "no address"],
)
def test_an_inconsistent_environment(run, tmp_path, environment, message):
    status, printed = run(*NADAMW, "--out", str(tmp_path / "runs"), **environment)
    if environment.get("RANK") == "2":
        assert status == 2  # told by rank 0 only
        return
    assert (status, printed.count("algoperf: ")) == (2, 1), printed
    assert message in printed


def test_a_port_that_is_in_use(run, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {
            "WORLD_SIZE": "2",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        status, printed = run(*NADAMW, "--out", str(tmp_path / "runs"), **environment)
    assert status == 2, printed
    assert f"could not meet at 127.0.0.1:{port}" in printed
    assert "Traceback" not in printed


def finish(run, out: Path, *more: str) -> Path:
    status, printed = run(*NADAMW, "--max-steps", "1", "--clock", "steps:1", "--out", str(out), "--seed", "1", *more)
    assert status == 0, printed
    return out / "nadamw" / "study_0" / "digits_pytorch" / "trial_1"


def test_a_finished_trial_is_not_overwritten_by_accident(run, tmp_path):
    directory = finish(run, tmp_path / "runs")
    before = (directory / "eval_measurements.csv").read_bytes()
    status, printed = run(*NADAMW, "--out", str(tmp_path / "runs"))
    assert status == 2
    assert "already holds a finished trial" in printed
    assert (directory / "eval_measurements.csv").read_bytes() == before
    finish(run, tmp_path / "runs", "--overwrite")


@pytest.mark.parametrize("key", ["workload", "version", "source digest", "number of ranks"])
def test_the_checkpoint_of_another_trial(run, tmp_path, key):
    import torch

    directory = finish(run, tmp_path / "runs")
    value = json.loads((directory / "trial.json").read_text())
    (directory / "trial.json").write_text(json.dumps({**value, "status": "preempted"}))
    identity = {"workload": "digits", "model_scale": "full", "version": "local", key: "another"}
    torch.save({"format": 1, "identity": identity}, directory / "checkpoint_000000001.pt")
    status, printed = run(
        *NADAMW, "--max-steps", "1", "--clock", "steps:1", "--out", str(tmp_path / "runs"), "--seed", "1"
    )
    assert status == 2, printed
    assert "belongs to another trial" in printed
    assert "Traceback" not in printed


def test_a_damaged_record_of_a_trial(run, tmp_path):
    directory = finish(run, tmp_path / "runs")
    (directory / "trial.json").write_text("{")
    status, printed = run(*NADAMW, "--out", str(tmp_path / "runs"))
    assert status == 2, printed
    assert "trial.json" in printed
    assert "Traceback" not in printed


def test_an_unknown_option_is_refused(run, tmp_path):
    status, printed = run(*NADAMW, "--speed", "fast", "--out", str(tmp_path / "runs"))
    assert status == 2
    assert "--speed" in printed
    assert "Traceback" not in printed
