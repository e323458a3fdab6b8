"""Existing submissions as processes: to the target on one rank and on two, and two ranks are one on the same batches."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUBMISSIONS = Path(__file__).parent / "submissions"
ONE = [sys.executable, "-m", "algoperf_torch.run"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "algoperf_torch.run"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(name: str, launcher: list[str], out: Path, *options: str) -> Path:
    """Trains the digits; returns the trial's directory."""
    command = [
        *launcher,
        "--workload",
        "digits",
        "--submission",
        str(SUBMISSIONS / name),
        "--seed",
        "3",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return out / name / "study_0" / "digits_pytorch" / "trial_1"


@pytest.mark.parametrize(
    ("name", "launcher", "options"),
    [("v06_adamw", ONE, []), ("v05_nadamw", TWO, ["--no-compile"])],
    ids=["one rank, compiled", "two ranks"],
)
def test_reaches_the_target(tmp_path, name, launcher, options):
    directory = run(name, launcher, tmp_path, *options)
    trial = json.loads((directory / "trial.json").read_text())
    assert trial["status"] == "reached"
    assert trial["process"]["world_size"] == (1 if launcher is ONE else 2)
    assert not [flag for flag in trial["validity"]["flags"] if flag["severity"] == "void"]
    if name == "v06_adamw":  # the harness's graphs serve the submission's calls
        assert trial["validity"]["compilations"].get("training", {}).get("graphs", 0) == 0


@pytest.mark.parametrize("name", ["closure", "queue_inner_steps", "sam_style", "two_forwards"])
def test_two_ranks_are_one_rank_on_the_same_global_batch(tmp_path, name):
    """The submission sums the loss over the ranks, DDP averages gradients: together that is the gradient of one rank.

    Most of these steps are proportional to the gradient, so that a wrong factor shows, by far more than the rounding that
    grows over the steps.
    """
    (point,) = json.loads((SUBMISSIONS / name / "tuning_search_space.json").read_text())
    point["dropout_rate"] = 0.0  # masks differ between ranks
    options = ["--hparams", *(f"{key}={value}" for key, value in point.items()), "--clock", "steps:0.1"]
    losses = {}
    for launcher in (ONE, TWO):
        out = tmp_path / f"ranks_{len(losses)}"
        directory = run(
            name, launcher, out, *options, "--deterministic", "--threads", "1", "--max-steps", "20", "--no-compile"
        )
        with (directory / "eval_measurements.csv").open(newline="") as file:
            losses[len(losses)] = [float(row["validation/loss"]) for row in csv.DictReader(file)]
    assert len(losses[0]) > 4
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
