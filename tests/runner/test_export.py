"""The files of a real trial, read as strictly as the published format asks, with nothing of the package but its command.

What is checked is written down here from the format's description: layout, columns and their order, cells, meta data.
"""

import csv
import itertools
import json
import os
import re
import subprocess
import sys

import pytest

ALWAYS = {
    "accumulated_eval_time", "accumulated_logging_time", "accumulated_submission_time", "global_step",
    "preemption_count", "score", "test/num_examples", "total_duration", "validation/num_examples",
}  # fmt: skip
METRICS = {f"{split}/{metric}" for split in ("train", "validation", "test") for metric in ("accuracy", "loss")}
INTEGERS = ("global_step", "preemption_count", "test/num_examples", "validation/num_examples")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
PATH = re.compile(r"[\w.+=-]+/study_\d+/[a-z0-9_]+_(jax|pytorch)/trial_[1-9]\d*")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the folder of all runs, the trial's directory) of a trial with hyperparameters and values that it logs itself."""
    out = tmp_path_factory.mktemp("runs")
    words = ["--workload", "digits", "--submission", "nadamw", "--trial", "4", "--seed", "5", "--out", str(out)]
    exact = ["--no-compile", "--threads", "1", "--max-steps", "130", "--clock", "steps:0.01", "--device", "cpu"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "TORCHINDUCTOR_"))
    }
    command = [sys.executable, "-m", "algoperf_torch.run", *words, *exact]
    done = subprocess.run(
        command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = out.glob("*/study_*/*/trial_*")
    return out, directory


def read(path):
    """Header and rows of text cells, by the csv module alone; no quoting, one line feed at the end of each line."""
    data = path.read_bytes()
    assert b'"' not in data
    assert b"\r" not in data
    assert data.endswith(b"\n")
    header, *rows = csv.reader(data.decode("ascii").splitlines(), strict=True)
    assert len(set(header)) == len(header)
    for row in rows:
        assert len(row) == len(header)
        assert all(cell == "" or NUMBER.fullmatch(cell) for cell in row)
    return header, [dict(zip(header, row, strict=True)) for row in rows]


def test_layout(run):
    out, directory = run
    assert PATH.fullmatch(directory.relative_to(out).as_posix())
    assert directory.name == "trial_4"
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    assert {"eval_measurements.csv", "measurements.csv", "hparams.json", "meta_data_0.json"} <= names
    assert not list(directory.glob("checkpoint*"))


def test_evaluations(run):
    _, directory = run
    header, rows = read(directory / "eval_measurements.csv")
    assert header == sorted(ALWAYS | METRICS)
    assert len(header) == 15
    numbers = [{name: float(cell) for name, cell in row.items()} for row in rows]  # no cell is empty
    assert len(rows) >= 3
    assert rows[0]["global_step"] == "1"
    assert numbers[0]["accumulated_logging_time"] == 0.0
    for row in rows:
        assert row["score"] == row["accumulated_submission_time"]
        assert all(row[name].isdigit() for name in INTEGERS)
        assert row["preemption_count"] == "0"
    for before, after in itertools.pairwise(numbers):
        for name in ("global_step", "score"):
            assert after[name] > before[name]
        for name in ("accumulated_eval_time", "accumulated_logging_time", "total_duration"):
            assert after[name] >= before[name]
        for name in ("test/num_examples", "validation/num_examples"):
            assert after[name] == before[name] == 300
    for row in numbers:
        assert all(0 <= row[name] <= 1 for name in row if name.endswith("/accuracy"))


def test_measurements(run):
    _, directory = run
    _, evaluations = read(directory / "eval_measurements.csv")
    header, rows = read(directory / "measurements.csv")
    *body, last = rows
    filled = [{name: cell for name, cell in row.items() if cell} for row in body]
    assert [row for row in filled if "total_duration" in row] == evaluations
    logged = [row for row in filled if "total_duration" not in row]
    assert logged
    assert all("global_step" in row and len(row) > 1 for row in logged)
    assert {name for name, cell in last.items() if cell} == {"global_step", "preemption_count", "score"}
    assert (last["global_step"], last["score"]) == (evaluations[-1]["global_step"], evaluations[-1]["score"])
    in_order = []
    for row in filled:
        in_order += sorted(name for name in row if name not in in_order)
    assert header == in_order  # sorted keys of the first row, then new keys as they come


def test_hyperparameters_and_meta_data(run):
    _, directory = run
    hparams, meta = (json.loads((directory / name).read_text()) for name in ("hparams.json", "meta_data_0.json"))
    for name, content in (("hparams.json", hparams), ("meta_data_0.json", meta)):
        assert (directory / name).read_text() == json.dumps(content, indent=2) + "\n"
        assert isinstance(content, dict)
    assert all(isinstance(value, str | bool | int | float) for value in meta.values())
    expected = {
        "workload.validation_target_value": 0.9783, "workload.test_target_value": 0.9717, "workload.step_hint": 600,
        "workload.max_allowed_runtime_sec": 30.0, "workload.num_validation_examples": 300,
    }  # fmt: skip
    assert {name: meta[name] for name in expected} == expected
    for name in ("os_platform", "python_version", "cpu_model_name", "cpu_count", "gpu_count", "rng_seed", "mem.total"):
        assert name in meta


def test_the_record_says_what_the_official_files_say(run):
    _, directory = run
    _, rows = read(directory / "eval_measurements.csv")
    record = json.loads((directory / "trial.json").read_text())
    assert record["hyperparameters"] == json.loads((directory / "hparams.json").read_text())
    assert record["seeds"]["trial"] == json.loads((directory / "meta_data_0.json").read_text())["rng_seed"]
    assert record["budget"] == {"seconds": 30.0, "steps": 130, "changed": False}
    result = record["result"]
    assert result["evaluations"] == len(rows)
    assert result["steps"] == int(rows[-1]["global_step"])
    assert result["submission_seconds"] == float(rows[-1]["score"])
    hit = next(row for row in rows if float(row["validation/accuracy"]) > 0.9783)
    assert record["status"] == "reached"
    assert result["validation_step"] == int(hit["global_step"])
    assert result["validation_seconds"] == float(hit["score"])


def test_the_official_steps_to_a_score(run):
    """The time of the first hit is the score of the only trial of the only study; so says `algoperf score`."""
    out, directory = run
    _, rows = read(directory / "eval_measurements.csv")
    hits = [float(row["score"]) for row in rows if float(row["validation/accuracy"]) >= 0.9783]
    command = [
        sys.executable,
        "-m",
        "algoperf_torch.cli",
        "score",
        str(out),
        "--json",
        "-",
        "--bootstrap",
        "0",
        "--no-cache",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (times,) = json.loads(done.stdout)["times"].values()
    assert times == {"digits": hits[0]}
