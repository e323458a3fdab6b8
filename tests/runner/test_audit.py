"""The audit: an untouched run is valid, and every kind of damage is found and named."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys

import pytest

from algoperf_torch import run as run_module
from algoperf_torch.errors import UsageError
from algoperf_torch.runner.audit import AuditOptions, audit, main
from algoperf_torch.runner.seeds import TrialSeeds, draw_trial_seed
from algoperf_torch.spec import Ruleset

STEPS, SECONDS, ACCURACY = [1, 40, 90, 140], [0.5, 1.6, 2.7, 3.8], [0.2, 0.9, 0.97, 0.985]
TRIAL_SECONDS = 1.0  # between the start of the process and the first step


def write(directory, summary, rows, *, name="digits"):
    directory.mkdir(parents=True)
    (directory / "trial.json").write_text(json.dumps(summary))
    (directory / "hparams.json").write_text(json.dumps(summary["hyperparameters"]))
    (directory / "meta_data_0.json").write_text(json.dumps({"rng_seed": summary["seeds"]["trial"]}))
    write_rows(directory, rows)


def write_rows(directory, rows, measurements=None):
    for file, content in (
        ("eval_measurements", rows),
        ("measurements", [{"global_step": 5, "lr": 0.1}, *rows] if measurements is None else measurements),
    ):
        columns = sorted({key for row in content for key in row})
        with (directory / f"{file}.csv").open("w", newline="") as opened:
            writer = csv.DictWriter(opened, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(content)


def evaluation_rows():
    rows = []
    for number, (step, seconds, accuracy) in enumerate(zip(STEPS, SECONDS, ACCURACY, strict=True)):
        evaluation, logging = 0.05 * (number + 1), 0.01 * number
        rows.append(
            {
                "accumulated_eval_time": evaluation,
                "accumulated_logging_time": logging,
                "accumulated_submission_time": seconds,
                "score": seconds,
                "global_step": step,
                "preemption_count": 0,
                "total_duration": seconds + evaluation + logging + 0.001,
                "validation/num_examples": 300,
                "validation/accuracy": accuracy,
                "test/accuracy": accuracy - 0.01,
            }
        )
    return rows


def intervals():
    rows, step, seconds = [], 0, 0.0
    for now, total in zip(STEPS, SECONDS, strict=True):
        spent = total - seconds
        rows.append(
            {
                "step": now,
                "steps": now - step,
                "submission_seconds": spent,
                "independent_seconds": spent - 1e-5,
                "wait_seconds": 0.0,
                "mean_step_seconds": spent / (now - step),
            }
        )
        step, seconds = now, total
    return rows


def summary_of(*, study=0, trial=1, submission="nadamw", version="local", run_seed=99):
    seed = draw_trial_seed(run_seed, workload="digits", study=study, trial=trial)
    return {
        "schema_version": 1,
        "package_version": "0.1.0",
        "status": "reached",
        "void": False,
        "workload": "digits",
        "version": version,
        "ruleset": "external",
        "study": study,
        "trial": trial,
        "submission": {"name": submission, "reference": submission, "digest": "d" * 64, "sources": []},
        "hyperparameters": {"lr": 0.1},
        "seeds": {
            "run": run_seed,
            "trial": seed,
            **{key: list(pair) for key, pair in TrialSeeds.derive(seed, Ruleset.EXTERNAL)._asdict().items()},
        },
        "options": {"budget": None, "eval_period": None, "max_steps": None, "model_scale": "full"},
        "synthetic_data": False,
        "compile_policy": "prewarmed",
        "kernels": {"choice": "default", "used": []},
        "budget": {"seconds": 30.0, "steps": None, "changed": False},
        "clock": "real",
        "supervised": True,
        "process": {"host": "h", "pid": 1, "started": 1000.0, "world_size": 1},
        "started": 1001.0,
        "ended": 1001.0 + TRIAL_SECONDS + SECONDS[-1] + 0.5,
        "heartbeat": 1006.0,
        "environment": {
            "gpus": [],
            "cpu": {"model": "c", "count": 2},
            "driver": None,
            "packages": {"torch": "2.11.0"},
            "precision": {"float32_matmul": "high"},
            "threads": {"torch": 2},
        },
        "hardware_check": [],
        "setup_seconds": {"model": 0.1},
        "result": {
            "steps": STEPS[-1],
            "submission_seconds": SECONDS[-1],
            "validation_step": 140,
            "validation_seconds": 3.8,
            "test_step": 140,
            "test_seconds": 3.8,
            "samples": STEPS[-1] * 128,
            "forward_passes": STEPS[-1],
            "backward_passes": STEPS[-1],
            "data_wait_seconds": 0.0,
            "evaluations": 4,
            "largest_evaluation_lateness_seconds": 0.01,
        },
        "evaluation_seconds": 0.2,
        "logging_seconds": 0.04,
        "preemption_count": 0,
        "validity": {
            "valid": True,
            "flags": [],
            "disabled_guards": [],
            "samples_per_step": 128.0,
            "mean_step_seconds": 0.025,
            "weights_in_products": 10_000,
            "intervals": intervals(),
        },
    }


class Run:
    """A fabricated trial directory that can be damaged before it is audited."""

    def __init__(self, root, **facts):
        self.summary, self.rows = summary_of(**facts), evaluation_rows()
        self.directory = (
            root
            / self.summary["submission"]["name"]
            / f"study_{self.summary['study']}"
            / "digits_pytorch"
            / f"trial_{self.summary['trial']}"
        )
        self.after = []  # changes of the written files

    def write(self):
        write(self.directory, self.summary, self.rows)
        for change in self.after:
            change(self.directory)
        return self


def findings(root, severity="invalid"):
    return [finding.text for trial in audit([root]) for finding in trial.findings if finding.severity == severity]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_untouched_run_is_valid(run, tmp_path, capsys):
    run.write()
    assert findings(tmp_path) == findings(tmp_path, "warning") == []
    assert main(AuditOptions(runs=(tmp_path,))) == 0
    assert "1 trials: VALID" in capsys.readouterr().out


def change_rows(number, **values):
    def change(run):
        run.rows[number].update(values)

    return change


def change_summary(*path, value):
    def change(run):
        entry = run.summary
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = value

    return change


def change_budget(option, seconds, steps=None):
    def change(run):
        run.summary["options"]["budget"] = option
        run.summary["budget"] = {"seconds": seconds, "steps": steps, "changed": True}

    return change


def change_files(function):
    return lambda run: run.after.append(function)


def flag(severity):
    return {"name": "quiet", "reason": "busy", "step": 40, "severity": severity, "rank": 0}


INVALID = {
    "not closed": (change_summary("status", value="running"), "never closed"),
    "void": (change_summary("void", value=True), "is void"),
    "void flag": (change_summary("validity", "flags", value=[flag("void")]), "quiet at step 40: busy"),
    "guard taken out": (change_summary("validity", "disabled_guards", value=["quiet"]), "guards were taken out: quiet"),
    "no validity": (lambda run: run.summary.pop("validity"), "does not follow its schema"),
    "wrong schema": (change_summary("study", value="zero"), "does not follow its schema at study"),
    "unknown version": (change_summary("version", value="v7"), "Unknown benchmark version 'v7'"),
    "unknown workload": (change_summary("workload", value="mnist9"), "Unknown workload of version local 'mnist9'"),
    "moved directory": (change_summary("trial", value=2), "the directory is study_0/digits_pytorch/trial_1"),
    "score edited": (change_rows(2, score=1.0), "score differs from accumulated_submission_time"),
    "not a number": (change_rows(1, score="fast", accumulated_submission_time="fast"), "is 'fast', not a number"),
    "time backwards": (
        change_rows(2, score=1.0, accumulated_submission_time=1.0),
        "accumulated_submission_time goes from 1.6 to 1",
    ),
    "step repeated": (change_rows(2, global_step=40), "global_step goes from 40 to 40"),
    "evaluation time backwards": (change_rows(3, accumulated_eval_time=0.01), "accumulated_eval_time goes from"),
    "first step not evaluated": (change_rows(0, global_step=2), "the first evaluation is at step 2"),
    "parts exceed the whole": (change_rows(3, total_duration=3.0), "the parts add up to 4.03 s, but 3.0 s passed"),
    "process too short": (change_summary("ended", value=1003.0), "in a process that lived for 2.00 s"),
    "log longer than the process": (
        change_rows(3, total_duration=50.0),
        "the log spans 50.00 s, the process lived for 5.30 s",
    ),
    "log shortened against the guards": (
        change_rows(3, score=3.0, accumulated_submission_time=3.0),
        "the guards saw 3.800 s up to step 140, the log says 3.000 s",
    ),
    "slow clock": (
        change_summary("validity", "intervals", 1, "independent_seconds", value=9.0),
        "step 40: 1.100 s were charged while 9.000 s went by",
    ),
    "target not in the rows": (
        change_rows(3, **{"validation/accuracy": 0.95}),
        "validation target: trial.json says step 140 after 3.800 s, the rows say not reached",
    ),
    "earlier hit claimed": (
        change_summary("result", "validation_seconds", value=2.7),
        "validation target: trial.json says step 140 after 2.700 s, the rows say step 140 after 3.800 s",
    ),
    "status too bad": (change_summary("status", value="budget_exhausted"), "but the validation target was reached"),
    "row missing": (lambda run: run.rows.pop(1), "trial.json counts 4 evaluations, the log has 3"),
    "no rows": (lambda run: run.rows.clear(), "has no row, trial.json counts 4 evaluations"),
    "over the budget": (
        change_rows(3, score=61.0, accumulated_submission_time=61.0),
        "1 evaluations at or after the budget of 30 s; the version allows 0",
    ),
    "other budget than the version's": (
        change_summary("budget", "seconds", value=60.0),
        "the budget was 60 s; the version's is 30 s",
    ),
    "limit of steps that nobody set": (
        change_summary("budget", "steps", value=600),
        "the budget was 30 s and 600 steps; the version's is 30 s",
    ),
    "budget said to be changed": (
        change_summary("budget", "changed", value=True),
        "trial.json says the budget was changed; --budget is None",
    ),
    "budget changed in silence": (
        change_summary("options", "budget", value="30s"),
        "trial.json says the budget was not changed; --budget is 30s",
    ),
    "over the changed budget": (
        change_budget("3s", 3.0),
        "1 evaluations at or after the budget of 3 s; the version allows 0",
    ),
    "more steps than the budget": (
        change_budget("100steps", None, 100),
        "140 steps were taken; the budget ends after 100",
    ),
    "valid and flagged": (
        change_summary("validity", "valid", value=False),
        "`valid` is false, which its flags contradict",
    ),
    "trial seed": (change_summary("seeds", "trial", value=5), "the trial seed is 5; run seed 99 gives"),
    "model seed": (
        change_summary("seeds", "model", value=[1, 2]),
        "seeds that do not follow from the trial seed: model",
    ),
    "hyperparameters edited": (
        change_files(lambda d: (d / "hparams.json").write_text('{"lr": 0.2}')),
        "hparams.json differs",
    ),
    "hyperparameters missing": (change_files(lambda d: (d / "hparams.json").unlink()), "Cannot read"),
    "meta data": (
        change_files(lambda d: (d / "meta_data_0.json").write_text('{"rng_seed": 3}')),
        "rng_seed is 3",
    ),
    "column missing": (
        lambda run: [row.pop("total_duration") for row in run.rows],
        "missing columns total_duration",
    ),
    "target column missing": (
        lambda run: [row.pop("validation/accuracy") for row in run.rows],
        "missing columns validation/accuracy",
    ),
    "measurements differ": (
        change_files(lambda d: write_rows(d, evaluation_rows(), evaluation_rows()[:-1])),
        "hold different evaluations",
    ),
    "unsorted columns": (
        change_files(lambda d: _swap_columns(d / "eval_measurements.csv")),
        "the columns are not sorted",
    ),
    "damaged": (change_files(lambda d: (d / "trial.json").write_text("{")), "Cannot read"),
    "not text": (change_files(lambda d: (d / "eval_measurements.csv").write_bytes(b"\xff\xfe\n")), "decode"),
}


def _swap_columns(path):
    with path.open(newline="") as file:
        rows = [row[::-1] for row in csv.reader(file)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.mark.parametrize("name", INVALID)
def test_damage_is_found(name, run, tmp_path, capsys):
    damage, text = INVALID[name]
    damage(run)
    run.write()
    assert any(text in found for found in findings(tmp_path)), findings(tmp_path)
    assert main(AuditOptions(runs=(tmp_path,))) == 1
    assert "1 NOT VALID" in capsys.readouterr().out


WARNINGS = {
    "warning flag": (change_summary("validity", "flags", value=[flag("warn")]), "quiet at step 40: busy"),
    "too fast an interval": (
        change_summary("validity", "intervals", 3, "mean_step_seconds", value=0.001),
        "steps up to 140 took 0.001 s each",
    ),
    "below the arithmetic floor": (
        lambda run: (
            change_summary("environment", "gpus", value=[{"name": "Tesla V100-SXM2-16GB"}])(run),
            change_summary("validity", "weights_in_products", value=10**9)(run),
        ),
        "its arithmetic alone takes 0.00614 s",
    ),
    "late evaluation": (
        change_summary("result", "largest_evaluation_lateness_seconds", value=5.0),
        "an evaluation came 5.00 s late",
    ),
    "not finite": (change_rows(1, **{"validation/accuracy": "nan"}), "step 40: the target metric is not a number"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_oddity_is_a_warning(name, run, tmp_path):
    damage, text = WARNINGS[name]
    damage(run)
    if name == "below the arithmetic floor":
        run.summary["validity"]["mean_step_seconds"] = 0.001
    run.write()
    assert any(text in found for found in findings(tmp_path, "warning")), findings(tmp_path, "warning")
    assert findings(tmp_path) == []


def test_changed_source_is_a_warning(run, tmp_path):
    source = tmp_path / "lion.py"
    source.write_text("old")
    digest = hashlib.sha256(b"nadamw" + b"\0lion.py\0" + b"old").hexdigest()
    run.summary["submission"].update(sources=[str(source)], digest=digest)
    run.write()
    assert findings(tmp_path, "warning") == []
    source.write_text("new")
    assert findings(tmp_path, "warning") == ["the submission's source has changed since the run"]


OFFICIAL = {
    "machine": (
        change_summary(
            "hardware_check",
            value=[{"name": "device", "expected": "V100", "found": "none", "ok": False, "required": True}],
        ),
        "the machine is not the one of version",
    ),
    "unsupervised": (change_summary("supervised", value=False), "ran without a supervisor"),
    "clock": (change_summary("clock", value="steps:0.1"), "the clock was 'steps:0.1'"),
    "compile policy": (change_summary("compile_policy", value="off"), "compile policy off; the version has fresh"),
    "budget": (change_budget("90s", 90.0), "--budget 90s changes the rules"),
    "scale": (change_summary("options", "model_scale", value="test"), "--model-scale test changes the rules"),
}


@pytest.fixture
def official_version(tmp_path):
    """An official version that has the digits."""
    path = tmp_path / "official.toml"
    path.write_text('inherits = "local"\nname = "official"\nofficial = true\n[protocol]\ncompile_policy = "fresh"\n')
    return str(path)


def test_own_version_is_read_from_its_file(run, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\ninherits = "local"\n[workloads.digits]\nbudget_seconds = 20\n')
    run.summary["version"] = "mine"
    run.summary["options"]["version"] = str(file)
    run.summary["budget"]["seconds"] = 20.0
    run.write()
    assert findings(tmp_path) == []
    file.write_text('name = "yours"\ninherits = "local"\n')
    assert any("holds version 'yours' now; the trial ran under 'mine'" in text for text in findings(tmp_path))
    file.unlink()
    assert any("No version file" in text for text in findings(tmp_path))


def test_own_file_does_not_replace_a_builtin_version(run, tmp_path):
    file = tmp_path / "local.toml"
    file.write_text('name = "local"\ninherits = "local"\n[workloads.digits]\nbudget_seconds = 20\n')
    run.summary["options"]["version"] = str(file)
    run.summary["budget"]["seconds"] = 20.0
    run.write()
    assert any("the budget was 20 s; the version's is 30 s" in text for text in findings(tmp_path))


def test_official_run_is_valid(tmp_path, official_version):
    run = Run(tmp_path / "runs", version=official_version)
    run.summary["compile_policy"] = "fresh"
    run.write()
    assert findings(tmp_path / "runs") == []


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_conditions_are_checked(name, tmp_path, official_version):
    damage, text = OFFICIAL[name]
    run = Run(tmp_path / "runs", version=official_version)
    run.summary["compile_policy"] = "fresh"
    damage(run)
    run.write()
    (found,) = findings(tmp_path / "runs")
    assert text in found


# ---------------------------------------------------------------- trials against each other


def test_trials_of_a_study_are_valid_together(tmp_path):
    for study in range(2):
        for trial in range(1, 3):
            Run(tmp_path, study=study, trial=trial).write()
    Run(tmp_path, submission="sgd").write()  # shares its seeds with the other submission's trial, as it should
    assert findings(tmp_path) == findings(tmp_path, "warning") == []


def test_shared_seed_is_found(tmp_path):
    first, second = Run(tmp_path, trial=1).write(), Run(tmp_path, trial=2)
    second.summary["seeds"] = first.summary["seeds"]
    second.write()
    assert f"the same seed as {first.directory}" in findings(tmp_path)


def test_sources_must_agree(tmp_path):
    Run(tmp_path, trial=1).write()
    other = Run(tmp_path, trial=2)
    other.summary["submission"]["digest"] = "e" * 64
    other.write()
    assert findings(tmp_path) == ["the trials of nadamw ran 2 different sources"] * 2


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("environment", "cpu", "model"), "other", "device"),
        (("environment", "cpu", "count"), 64, "processors"),
        (("environment", "driver"), "550", "driver"),
        (("environment", "packages", "torch"), "2.12", "torch"),
        (("environment", "precision", "float32_matmul"), "medium", "precision"),
        (("process", "world_size"), 2, "ranks"),
        (("compile_policy",), "off", "compile policy"),
        (("kernels", "choice"), "reference", "choice of kernels"),
        (("clock",), "steps:1", "clock"),
    ],
)
def test_different_conditions_are_a_warning(tmp_path, path, value, word):
    Run(tmp_path, submission="a").write()
    other = Run(tmp_path, submission="b")
    change_summary(*path, value=value)(other)
    other.write()
    (found,) = findings(tmp_path, "warning")
    assert f"other {word}" in found


def test_too_few_samples_are_a_warning(tmp_path):
    for name in ("a", "b"):
        Run(tmp_path, submission=name).write()
    wonder = Run(tmp_path, submission="wonder")
    wonder.summary["validity"]["samples_per_step"] = 2.0
    wonder.write()
    (found,) = findings(tmp_path, "warning")
    assert "the target was reached after 280 samples; other submissions needed 1.79e+04" in found


# ---------------------------------------------------------------- the command


def test_missing_directory(tmp_path):
    with pytest.raises(UsageError, match="No directory"):
        audit([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="No trial below"):
        audit([tmp_path])


def test_warnings_can_be_left_out(run, tmp_path, capsys):
    run.summary["validity"]["flags"] = [flag("warn")]
    run.write()
    assert main(AuditOptions(runs=(tmp_path,), warnings=False)) == 0
    assert "warning:" not in capsys.readouterr().out


def test_audit_does_not_import_torch():
    code = "import sys; import algoperf_torch.runner.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_real_run_is_valid(tmp_path):
    """What the runner writes satisfies every check; half of a time that is longer than the slack is found."""
    arguments = ["--workload", "digits", "--submission", "nadamw", "--out", str(tmp_path), "--no-compile"]
    assert run_module.main([*arguments, "--max-steps", "200", "--eval-period", "0.1"]) == 0
    assert findings(tmp_path) == []
    (path,) = tmp_path.rglob("eval_measurements.csv")
    lines = path.read_text().splitlines()
    score = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))["score"]
    path.write_text(path.read_text().replace(score, f"{float(score) / 2:.17g}"))
    assert findings(tmp_path)
