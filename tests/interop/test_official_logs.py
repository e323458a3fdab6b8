"""Published results beside one's own: what is copied, what the scorer makes of it, what it refuses."""

import json
import stat
from pathlib import Path

import pytest

from algoperf_torch import cli
from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.interop.official_logs import ImportOptions, digest_of, import_logs, read_marker
from algoperf_torch.runner.audit import audit
from algoperf_torch.scoring.logs import read_logs
from algoperf_torch.scoring.report import render
from algoperf_torch.scoring.score import score_runs

SMALL = Path(__file__).parents[1] / "data" / "scoring" / "small.json"
GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "official-logs"
META = {"gpu_model_name": "Tesla V100-SXM2-16GB", "gpu_count": 8, "rng_seed": -3}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path):
    """The generated set: the folder of its submissions, and expected values."""
    content = json.loads(SMALL.read_text())
    for name, text in content["files"].items():
        path = tmp_path / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "published", content["expected"]


@pytest.fixture
def published(tmp_path):
    """Writes one official trial with meta data, flags, and files that are not to be copied."""

    def write(submission="baseline", workload="mnist", **flags):
        trial = tmp_path / "published" / submission / "study_0" / f"{workload}_jax" / "trial_1"
        trial.mkdir(parents=True)
        rows = "accumulated_submission_time,global_step,score,validation/accuracy\n1.0,1,1.0,0.1\n2.0,9,2.0,0.999\n"
        (trial / "eval_measurements.csv").write_text(rows)
        (trial / "measurements.csv").write_text(rows)
        (trial / "meta_data_0.json").write_text(json.dumps(META))
        (trial / "flags_0.json").write_text(json.dumps({"max_global_steps": None, **flags}))
        (trial / "hparams.json").write_text("{}")
        (trial / "events.out.tfevents.1").write_bytes(b"x")
        (trial / "checkpoint_7").write_bytes(b"x")
        return tmp_path / "published"

    return write


def run_import(source, out, **others):
    options = ImportOptions(source=source, out=out, **others)
    return list(import_logs(read_logs([source]), options))


def test_a_copy_scores_as_the_original(small, tmp_path):
    source, expected = small
    run_import(source, tmp_path / "runs", version="v0.5", prefix="")
    result = score_runs([tmp_path / "runs"], bootstrap=0)
    assert result.version.name == "v0.5"
    assert result.scores == score_runs([source], "v0.5", bootstrap=0).scores
    assert result.scores == pytest.approx(expected["scores"])


def test_the_official_logs_score_as_published(tmp_path, capsys):
    if not GOLDEN.is_dir():
        pytest.skip("the official logs are not beside the project (../shared/golden/official-logs)")
    words = ["import-logs", str(GOLDEN / "v05-self-tuning"), "--out", str(tmp_path / "runs")]
    assert cli.main(words) == 0
    assert "official-adamg: 14 trials; v0.5, self ruleset, 8 x Tesla V100-SXM2-16GB" in capsys.readouterr().out
    scores = score_runs([tmp_path / "runs"], bootstrap=0).scores
    expected = json.loads((GOLDEN / "expected.json").read_text())["scores"]
    assert {name.removeprefix("official-"): score for name, score in scores.items()} == expected


def test_what_is_copied_and_what_the_marker_says(published, tmp_path):
    ((folder, _, copied),) = run_import(published(), tmp_path / "runs")
    assert copied
    trial = folder / "study_0" / "mnist_jax" / "trial_1"
    assert sorted(path.name for path in trial.iterdir()) == [
        "eval_measurements.csv", "flags_0.json", "hparams.json", "measurements.csv", "meta_data_0.json",
    ]  # fmt: skip
    for path in [*trial.iterdir(), folder / "imported.json"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
    marker = read_marker(folder)
    assert marker["source"] == str(tmp_path / "published")
    assert (marker["version"], marker["ruleset"], marker["hardware"]) == (
        "v0.6",
        "external",
        "8 x Tesla V100-SXM2-16GB",
    )
    assert marker["digest"] == digest_of(folder)
    assert marker["imported"].endswith("+00:00")
    assert not list((tmp_path / "runs").glob(".importing*"))


@pytest.mark.parametrize(("flag", "version"), [(None, "v0.6"), (47999, "v0.5")])
def test_the_version_is_read_from_the_flags(published, tmp_path, flag, version):
    ((folder, _, _),) = run_import(published(max_global_steps=flag), tmp_path / "runs")
    assert read_marker(folder)["version"] == version


def test_the_nine_workload_state_tells_itself(published, tmp_path):
    ((folder, _, _),) = run_import(published(workload="finewebedu_lm"), tmp_path / "runs")
    assert read_marker(folder)["version"] == "v1.0"


def test_importing_again_changes_nothing_and_other_results_are_refused(published, tmp_path):
    source, out = published(), tmp_path / "runs"
    ((folder, _, _),) = run_import(source, out)
    before = (folder / "imported.json").stat().st_mtime_ns
    ((_, _, copied),) = run_import(source, out)
    assert not copied
    assert (folder / "imported.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="imported with other hardware"):
        run_import(source, out, hardware="4 x A100")
    (source / "baseline" / "study_0" / "mnist_jax" / "trial_1" / "hparams.json").write_text('{"a": 1}')
    with pytest.raises(UsageError, match="imported with other digest"):
        run_import(source, out)
    (out / "own" / "study_0").mkdir(parents=True)
    source.joinpath("baseline").rename(source / "own")
    with pytest.raises(UsageError, match="holds runs of your own"):
        run_import(source, out, prefix="")


def test_what_the_logs_do_not_tell_must_be_given(small, tmp_path):
    source, _ = small
    with pytest.raises(UsageError, match=r"Add --version v0\.5"):
        run_import(source, tmp_path / "runs")
    with pytest.raises(UsageError, match="nor version local name the hardware"):
        run_import(source, tmp_path / "runs", version="local")
    with pytest.raises(UsageError, match="v9"):
        run_import(source, tmp_path / "runs", version="v9")
    with pytest.raises(LogError, match="No submission 'nobody'"):
        run_import(source, tmp_path / "runs", version="v0.5", submissions=("nobody",))
    with pytest.raises(UsageError, match="--prefix 'a/b'"):
        ImportOptions(source=source, prefix="a/b")


@pytest.fixture
def beside_own(published, tmp_path):
    """A leaderboard with a published submission and one's own on another machine."""
    source, out = published(), tmp_path / "runs"
    run_import(source, out, version="local")
    own = out / "mine" / "study_0" / "mnist_pytorch" / "trial_1"
    own.mkdir(parents=True)
    rows = (source / "baseline/study_0/mnist_jax/trial_1/eval_measurements.csv").read_text()
    (own / "eval_measurements.csv").write_text(rows)
    record = {
        "status": "reached", "void": False, "version": "local", "ruleset": "external",
        "environment": {"gpus": [{"name": "H100"}]}, "process": {"world_size": 1},
    }  # fmt: skip
    (own / "trial.json").write_text(json.dumps(record))
    return out


def test_other_hardware_is_not_ranked_unless_asked(beside_own, capsys):
    assert cli.main(["score", str(beside_own)]) == 2
    told = capsys.readouterr().err
    assert "differ in hardware" in told
    assert "1 x H100 (mine); 8 x Tesla V100-SXM2-16GB (official-baseline)" in told
    assert "add --mixed" in told
    assert cli.main(["report", str(beside_own), "--out", str(beside_own / "report.html")]) == 2
    capsys.readouterr()
    assert cli.main(["score", str(beside_own), "--mixed", "--bootstrap", "0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Ranked together although they differ in hardware" in shown
    assert "8 x Tesla V100" in shown


def test_the_report_shows_both_with_their_hardware(beside_own):
    page = render(score_runs([beside_own], bootstrap=0, mixed=True))
    assert "Ranked together although they differ in hardware" in page
    assert "8 x Tesla V100-SXM2-16GB" in page
    assert "1 x H100" in page


def test_a_reference_is_audited_by_its_digest(published, tmp_path):
    ((folder, _, _),) = run_import(published(), tmp_path / "runs")
    (found,) = audit([tmp_path / "runs"])
    assert found.is_valid
    path = folder / "study_0" / "mnist_jax" / "trial_1" / "eval_measurements.csv"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("2.0", "1.5"))
    (found,) = audit([tmp_path / "runs"])
    assert not found.is_valid
    assert "not those that were imported" in found.findings[0].text
    (folder / "imported.json").unlink()
    (folder / "imported.json").write_text("[]")
    (found,) = audit([tmp_path / "runs"])
    assert "imported.json" in found.findings[0].text


def test_a_damaged_marker_is_reported(published, tmp_path):
    ((folder, _, _),) = run_import(published(), tmp_path / "runs")
    (folder / "imported.json").chmod(0o644)
    (folder / "imported.json").write_text('{"hardware": 8}')
    logs = read_logs([tmp_path / "runs"])
    assert [problem.message for problem in logs.problems] == ["entry 'hardware' is '8', not a str"]
