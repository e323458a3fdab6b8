import json
import math

import pytest

from algoperf_torch import cli
from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.scoring.held_out import CANDIDATES, HeldOutOptions, draw, read_candidates
from algoperf_torch.scoring.held_out import main as held_out_main
from algoperf_torch.scoring.targets import TargetsOptions, set_targets
from algoperf_torch.versions import load_version


@pytest.fixture
def tuning(tmp_path, write_trial):
    """Two algorithms, two points each; the best is `sgd` with lr 2, of which there are five repeats."""

    def write(root, submission, study, trial, lr, best, test, seconds=30.0):
        write_trial(
            root, submission, study, "digits", trial,
            seconds=[seconds / 3, 2 * seconds / 3, seconds], values=[0.1, best, best - 0.05], tests=[0.1, test, test - 0.05],
            steps=[1, 101, 201], files={"hparams.json": json.dumps({"wd": 0, "lr": lr})},
        )  # fmt: skip

    for algorithm, lr, best in (("adam", 1, 0.91), ("adam", 2, 0.93), ("sgd", 1, 0.90), ("sgd", 2, 0.95)):
        write(tmp_path / "tuning", algorithm, 0, lr, lr, best, best - 0.01)
    for study, (best, test) in enumerate([(0.94, 0.80), (0.96, 0.93), (0.95, 0.94), (0.97, 0.95), (0.93, 0.90)]):
        write(tmp_path / "repeats", "sgd", study, 1, 2, best, test, seconds=30.0 + study)
    return tmp_path


def test_procedure_of_the_paper(tuning):
    (setting,) = set_targets(TargetsOptions(runs=(tuning / "tuning",), repeats=(tuning / "repeats",)))
    assert (setting.algorithm, json.loads(setting.point)) == ("sgd", {"lr": 2, "wd": 0})
    assert setting.num_points == 4
    assert setting.validation_target == 0.949999  # just below 0.95, the median of the repeats' best
    assert setting.test_target == 0.929999  # the worst among those that reach it; 0.80 does not
    assert setting.budget_seconds == math.ceil(4 / 3 * 32)  # of the median training time
    steps = [201 + 200 / (2 * (30 + s) / 3) * (43 - (30 + s)) for s in range(5)]
    assert setting.step_hint == int(sorted(steps)[2])


def test_without_repeats_the_trials_of_the_best_point_are_them(tuning):
    (setting,) = set_targets(TargetsOptions(runs=(tuning / "repeats",)))
    assert setting.best_validation == (0.94, 0.96, 0.95, 0.97, 0.93)


def test_version_file_can_be_used(tuning, capsys):
    out = tuning / "mine.toml"
    runs, repeats = str(tuning / "tuning"), str(tuning / "repeats")
    assert cli.main(["targets", runs, "--repeats", repeats, "--out", str(out), "--name", "mine"]) == 0
    version = load_version(out)
    assert version.name == "mine"
    assert version.base_workloads == ("digits",)
    assert version.terms("digits").validation_target == 0.949999
    assert "0.94, 0.96, 0.95, 0.97, 0.93" in out.read_text()
    assert "Fewer than" not in capsys.readouterr().out
    assert cli.main(["score", repeats, "--version", str(out)]) == 0
    assert "sgd" in capsys.readouterr().out


def test_minimised_metrics_without_a_test_split(tmp_path, write_trial):
    for study, best in enumerate((22.0, 23.0, 21.12345678)):
        write_trial(
            tmp_path, "adam", study, "finewebedu_lm", version="v1.0",
            seconds=[10.0, 20.0], values=[90.0, best], tests=[math.nan, math.nan],
        )  # fmt: skip
    (setting,) = set_targets(TargetsOptions(runs=(tmp_path,), base="v1.0"))
    assert setting.validation_target == 22.0001
    assert setting.test_target is None


@pytest.mark.parametrize(
    ("value", "metric", "rounded"),
    [(0.98765432, "accuracy", 0.987654), (0.98, "accuracy", 0.979999), (21.1234567, "ppl", 21.1235)],
)
def test_rounding_favours_the_runner(tmp_path, write_trial, value, metric, rounded):
    workload = "digits" if metric == "accuracy" else "finewebedu_lm"
    write_trial(tmp_path, "a", 0, workload, seconds=[5.0], values=[value])
    (setting,) = set_targets(TargetsOptions(runs=(tmp_path,)))
    assert setting.validation_target == rounded


def test_evaluations_take_their_share(tmp_path, write_trial):
    text = "accumulated_eval_time,global_step,score,validation/accuracy\n3,1,10,0.5\n6,11,20,0.6\n"
    write_trial(tmp_path, files={"eval_measurements.csv": text})
    (setting,) = set_targets(TargetsOptions(runs=(tmp_path,)))
    assert setting.eval_period_seconds == 20  # 3 s each, 15 % of the training time


def test_void_runs_set_no_target(tmp_path, write_trial, own_record):
    write_trial(tmp_path, seconds=[1.0], values=[0.99], record=own_record(void=True, status="harness_error"))
    with pytest.raises(LogError, match="No finished trial with evaluations"):
        set_targets(TargetsOptions(runs=(tmp_path,)))


def test_mistakes(tuning, tmp_path, write_trial):
    write_trial(tmp_path / "other", "adam", seconds=[1.0], values=[0.5])
    write_trial(tmp_path / "nan", seconds=[1.0], values=[math.nan])
    with pytest.raises(LogError, match="No repeat of the best point of digits: sgd"):
        set_targets(TargetsOptions(runs=(tuning / "tuning",), repeats=(tmp_path / "other",)))
    with pytest.raises(LogError, match="has a value of validation/accuracy"):
        set_targets(TargetsOptions(runs=(tmp_path / "nan",)))
    with pytest.raises(UsageError, match="--budget-factor -1"):
        TargetsOptions(runs=(tmp_path,), budget_factor=-1)
    with pytest.raises(UsageError, match=r"--name v0\.6: a built-in version has this name"):
        TargetsOptions(runs=(tmp_path,), name="v0.6")
    assert cli.main(["targets", str(tuning / "tuning"), "--out", "x.txt"]) == 2
    assert cli.main(["targets", str(tuning / "tuning"), "--out", "/dev/null/x.toml"]) == 2
    assert cli.main(["targets", str(tuning / "tuning"), "--base", "v7"]) == 2


class TestHeldOut:
    def test_draw_of_the_first_competition(self):
        assert set(draw(read_candidates(), 3438810845)) == set(load_version("v0.5").held_out_workloads)

    def test_candidates_are_variants_of_the_version(self):
        version = load_version("v0.5")
        names = [name for group in read_candidates() for name in group]
        assert len(names) == 23
        assert all(version.terms(name).variant_of for name in names)

    def test_seed_zero_means_none(self):
        draws = {tuple(draw(read_candidates(), 0)) for _ in range(20)}
        assert len(draws) > 1
        assert len({tuple(draw(read_candidates(), 5)) for _ in range(20)}) == 1

    def test_command(self, capsys, tmp_path):
        assert held_out_main(HeldOutOptions(seed=3438810845)) == 0
        assert json.loads(capsys.readouterr().out) == list(load_version("v0.5").held_out_workloads)
        with pytest.raises(UsageError, match="must not be negative"):
            held_out_main(HeldOutOptions(seed=-1))
        own = tmp_path / "own.toml"
        own.write_text('candidates = [["a"], ["b"]]')
        assert held_out_main(HeldOutOptions(seed=1, candidates=own)) == 0
        assert json.loads(capsys.readouterr().out) == ["a", "b"]
        for text in ("candidates = []", 'candidates = ["a"]', "candidates = [[1]]", "{"):
            own.write_text(text)
            with pytest.raises(UsageError, match=r"own\.toml"):
                read_candidates(own)
        assert CANDIDATES.exists()
