"""What a version fixes beside the terms: the scale of the models, that nothing is compiled, and the data."""

import json

import pytest

from algoperf_torch import run as run_module
from algoperf_torch.cli import main as algoperf
from algoperf_torch.errors import UsageError
from algoperf_torch.runner.audit import audit
from algoperf_torch.runner.launch.local import to_arguments
from algoperf_torch.runner.options import RunOptions, settled
from algoperf_torch.versions import load_version

SMALL = """inherits = "local"
name = "small"
model_scale = "mini"
[protocol]
compile_policy = "off"
[data.ogbg]
examples = 40
"""


@pytest.fixture
def version(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


def options(**values):
    return RunOptions(submission="nadamw", workload="digits", **values)


def test_scale_and_compilation_are_the_version_s(version):
    for values, scale, compiled in (
        ({}, "full", True),
        ({"compile": False, "model_scale": "test"}, "test", False),
        ({"version": "mini"}, "mini", False),
        ({"version": version}, "mini", False),
        ({"version": version, "model_scale": "full"}, "full", False),
        ({"version": "v1.0"}, "full", True),
    ):
        chosen = options(**values)
        final = settled(chosen, load_version(chosen.version))
        assert (final.model_scale, final.compile) == (scale, compiled)


@pytest.mark.parametrize(("name", "scale"), [("mini", "full"), ("mini", "test"), ("v1.0", "mini")])
def test_another_scale_is_refused(name, scale):
    with pytest.raises(UsageError, match=f"--model-scale changes the rules .* version {name} fixes them"):
        options(version=name, model_scale=scale)


def test_only_what_was_said_is_handed_on_to_the_ranks():
    assert to_arguments(options(version="mini")) == [
        "--submission",
        "nadamw",
        "--version",
        "mini",
        "--workload",
        "digits",
    ]
    assert to_arguments(options(model_scale="full"))[-4:-2] == ["--model-scale", "full"]


def test_the_trial_records_what_was_in_force(tmp_path, version):
    arguments = [
        "--workload",
        "digits",
        "--submission",
        "nadamw",
        "--version",
        version,
        "--out",
        str(tmp_path / "runs"),
    ]
    assert run_module.main([*arguments, "--max-steps", "3", "--threads", "1"]) == 0
    (path,) = tmp_path.rglob("trial.json")
    trial = json.loads(path.read_text())
    assert (trial["options"]["model_scale"], trial["options"]["compile"]) == ("mini", False)
    assert trial["compile_policy"] == "off"

    def findings(**change):
        path.write_text(json.dumps({**trial, "options": {**trial["options"], "max_steps": None, **change}}))
        (audited,) = audit([tmp_path / "runs"])
        return [finding.text for finding in audited.findings if "changes the rules" in finding.text]

    assert findings() == []
    assert findings(model_scale="full") == ["--model-scale full changes the rules"]
    assert findings(eval_period=0.5) == ["--eval-period 0.5 changes the rules"]


def test_other_data_are_refused(tmp_path, version, capsys):
    arguments = [
        "--workload",
        "ogbg",
        "--submission",
        "nadamw",
        "--version",
        version,
        "--max-steps",
        "2",
        "--threads",
        "1",
    ]
    arguments += ["--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "runs")]
    generate = ["data", "generate", "--version", version, "--out", str(tmp_path / "data"), "--workers", "1"]
    assert algoperf(generate) == 0
    assert run_module.main(arguments) == 0
    (tmp_path / "small.toml").write_text(SMALL + "seed = 1\n")
    capsys.readouterr()
    assert run_module.main([*arguments, "--overwrite"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "data/ogbg holds 40 generated examples, seed 0, generator 1; version small has" in told
    assert "algoperf data generate --version" in told


@pytest.mark.slow
def test_a_mini_trial_on_two_ranks(tmp_path):
    """Data, tuning, audit and score of one workload of the mini benchmark, with less data and fewer steps."""
    path = tmp_path / "short.toml"
    path.write_text(
        'inherits = "mini"\nname = "short"\nbase_workloads = ["criteo1tb"]\n[data.criteo1tb]\nexamples = 10_000\n'
        "[workloads.criteo1tb]\nvalidation_target = 0.6\nstep_hint = 60\neval_period_seconds = 0.1\n"
    )
    common = ["--version", str(path), "--out", str(tmp_path / "runs")]
    data = str(tmp_path / "data")
    assert algoperf(["data", "generate", "--version", str(path), "--out", data, "--datasets", "criteo1tb"]) == 0
    point = ["--hparams", "lr=0.005", "--submission", "adamw", "--seed", "1", "--probe-steps", "0"]
    tune = ["tune", *common, *point, "--data-dir", data, "--ranks", "2", "--threads", "1", "--studies", "0"]
    assert algoperf(tune) == 0
    (record,) = tmp_path.rglob("trial.json")
    trial = json.loads(record.read_text())
    assert trial["status"] == "reached"
    assert trial["process"]["world_size"] == 2
    assert (trial["options"]["model_scale"], trial["compile_policy"], trial["synthetic_data"]) == ("mini", "off", True)
    assert algoperf(["score", str(tmp_path / "runs"), "--version", str(path)]) == 0
