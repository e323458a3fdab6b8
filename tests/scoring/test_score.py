"""The whole scorer on official logs, on a generated set with their irregularities, and on our own runs."""

import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from algoperf_torch import cli
from algoperf_torch.errors import LogError, UnknownNameError, UsageError
from algoperf_torch.scoring import profile
from algoperf_torch.scoring.logs import Severity, read_logs
from algoperf_torch.scoring.score import ScoreOptions, score_runs, to_json
from algoperf_torch.scoring.times import Rule
from algoperf_torch.versions import load_version


def number(value):
    return math.nan if value is None else float(value)


@pytest.fixture(scope="module")
def expected(official_logs):
    return json.loads((official_logs / "expected.json").read_text())


@pytest.fixture(scope="module")
def result(official_logs):
    started = time.perf_counter()
    result = score_runs([official_logs / "v05-self-tuning"], "v0.5")
    print(f"cold: {time.perf_counter() - started:.2f} s for {len(result.logs.trials)} trials")
    return result


class TestOfficialLogs:
    """Equal to the last bit, on the published self-tuning logs of v0.5."""

    def test_guesses_the_ruleset(self, result):
        assert result.ruleset == "self"

    def test_times(self, result, expected):
        for submission, times in expected["time_to_target_median_over_studies"].items():
            for workload in result.workloads:
                np.testing.assert_equal(
                    result.times[submission][workload], number(times[workload]), f"{submission} {workload}"
                )

    def test_per_study(self, result, official_logs):
        with (official_logs / "expected_per_study.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) > 300
        for row in rows:
            workload, study = row["workload"].rsplit("_", 1)[0], int(row["study"].removeprefix("study_"))
            found = result.standing.studies.results[row["submission"], workload, study]
            assert found.seconds == float(row["time_to_target"])
            if row["trial"]:
                assert f"trial_{found.trial.number}" == row["trial"]
                assert found.row == int(float(row["eval_index"]))

    def test_ratios(self, result, expected):
        ratios = result.by_workload(result.standing.ratios)
        for submission, row in expected["performance_ratio_after_all_rules"].items():
            assert ratios[submission] == {workload: number(value) for workload, value in row.items()}

    def test_profile(self, result, official_logs):
        with (official_logs / "expected_performance_profile.csv").open() as file:
            header, *rows = list(csv.reader(file))
        at = profile.taus()
        assert at.tolist() == [float(value) for value in header[1:]]
        rho = profile.profile(result.standing.ratios, at)
        for name, *values in rows:
            assert rho[result.submissions.index(name)].tolist() == [float(value) for value in values]

    def test_scores(self, result, expected):
        assert result.scores == expected["scores"]
        assert {name: round(score, 4) for name, score in result.scores.items()} == expected[
            "published_scores_4_decimals"
        ]

    def test_documented_rule_differs_where_no_evaluation_exists(self, result):
        assert {(d.submission, d.workload) for d in result.differences} == {
            (name, workload) for name in ("sinv6", "sinv6_75") for workload in ("criteo1tb", "criteo1tb_embed_init")
        }
        assert all("no evaluations" in d.why for d in result.differences)

    def test_doubts_the_first_rank(self, result):
        assert any("schedule_free_adamw before baseline is not settled" in text for text in result.warnings)

    def test_csv_is_what_the_official_scorer_writes(self, result, official_logs, tmp_path):
        from algoperf_torch.scoring.output import write_csv

        write_csv(result, tmp_path)
        with (tmp_path / "performance_profile_score.csv").open() as file:
            ours = {row[0]: row[1:] for row in csv.reader(file)}
        with (official_logs / "expected_performance_profile.csv").open() as file:
            assert ours == {row[0]: row[1:] for row in csv.reader(file)}
        with (tmp_path / "time_to_targets.csv").open() as file:
            header, *rows = list(csv.reader(file))
        assert header[1:] == sorted(result.workloads)
        assert {row[0]: row[header.index("criteo1tb")] for row in rows}["sinv6"] == ""
        with (tmp_path / "baseline_summary.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 5 * 14


class TestGeneratedLogs:
    """The same against the plain scorer of conftest.py."""

    def test_small_set_has_the_stored_values(self, small):
        root, expected = small
        result = score_runs([root], "v0.5", bootstrap=0)
        assert result.ruleset == "external"
        for name, score in expected["scores"].items():
            assert result.scores[name] == pytest.approx(float(score), abs=1e-14)
        for name, row in expected["times"].items():
            for workload, value in row.items():
                np.testing.assert_allclose(result.times[name][workload], number(value), rtol=1e-14)
        for name, row in expected["ratios"].items():
            for workload, value in row.items():
                np.testing.assert_allclose(
                    result.by_workload(result.standing.ratios)[name][workload], number(value), rtol=1e-14
                )

    def test_small_set_against_the_plain_scorer(self, small, reference):
        root, _ = small
        expected = reference(root, "v0.5")
        result = score_runs([root], "v0.5", bootstrap=0)
        for name, score in expected["scores"].items():
            assert result.scores[name] == pytest.approx(score, abs=1e-14)

    def test_strays_are_reported_and_ignored(self, small):
        root, _ = small
        notes = [str(problem) for problem in read_logs([root]).problems]
        assert any("study_0/trial_1: ignored: not named <workload>_<framework>" in note for note in notes)
        assert any(".log: ignored: a file where workloads are expected" in note for note in notes)

    def test_documented_rule_counts_a_missing_study_as_not_reached(self, small):
        root, _ = small
        result = score_runs([root], "v0.5", rule="documented", bootstrap=0)
        assert result.standing.studies.studies == (0, 1, 2, 3, 4)  # the version's number; three were run
        assert result.standing.studies.results["cedar", "ogbg", 2].seconds == math.inf
        assert any("no trials" in d.why for d in result.differences if d.workload == "ogbg")

    def test_any_subset_of_submissions(self, small):
        root, _ = small
        result = score_runs([root], "v0.5", submissions=("birch", "dune"), bootstrap=0)
        assert result.submissions == ("birch", "dune")
        alone = score_runs([root / "amber"], "v0.5", bootstrap=0)
        assert alone.scores["amber"] == pytest.approx(np.isfinite(alone.standing.base_times).mean())

    def test_one_of_several_roots_and_submissions(self, small):
        root, _ = small
        together = score_runs([root / "amber", root / "birch"], "v0.5", bootstrap=0)
        assert together.scores == score_runs([root], "v0.5", submissions=("amber", "birch"), bootstrap=0).scores

    def test_reference(self, small):
        root, _ = small
        result = score_runs([root], "v0.5", reference="amber", bootstrap=0)
        speedups = dict(zip(result.submissions, result.speedups, strict=True))
        assert speedups["amber"] == 1.0
        assert speedups["birch"] < 1.0  # slower
        assert math.isnan(speedups["dune"])  # it has no runs of criteo1tb
        relative = score_runs([root], "v0.5", reference="birch", relative=True, bootstrap=0)
        solved = np.isfinite(relative.standing.base_times[relative.submissions.index("birch")])
        assert (relative.standing.ratios[relative.submissions.index("birch"), solved] == 1).all()

    def test_self_tuning_ruleset_scales_the_budget(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "mnist", 1, 10.0)
        write_reached(tmp_path, "never", 0, "mnist", 1, math.inf)
        budget = load_version("local").terms("mnist").budget_seconds
        for ruleset, factor in (("external", 1.0), ("self", 1.5)):
            result = score_runs([tmp_path], "local", ruleset, reference="alpha")
            assert result.speedups[1] == pytest.approx(10.0 / (factor * budget + 1))

    def test_a_longer_budget_of_local_runs_is_charged(self, tmp_path, write_trial, write_reached):
        budget = load_version("local").terms("digits").budget_seconds
        write_reached(tmp_path, "alpha", 0, "digits", 1, 2 * budget)
        write_trial(tmp_path, "never", seconds=[5.0, 3 * budget], values=[0.1, 0.1])
        result = score_runs([tmp_path], "local", reference="alpha")
        assert result.speedups[1] == pytest.approx(2 * budget / (3 * budget + 1))

    def test_where_steps_are_limited_the_longest_training_is_charged(self, tmp_path, write_reached):
        workloads = load_version("mini").base_workloads
        for workload in workloads:
            write_reached(tmp_path, "alpha", 0, workload, 1, 10.0, version="mini")
            write_reached(tmp_path, "never", 0, workload, 1, math.inf, version="mini")
        assert all(load_version("mini").terms(workload).budget_seconds >= 50 for workload in workloads)
        result = score_runs([tmp_path], "mini", reference="alpha")
        assert result.speedups[1] == pytest.approx(10.0 / (50 + 1))


class TestOwnRuns:
    def test_times_steps_and_score_over_the_workloads_present(self, tmp_path, write_reached, own_record):
        for study in range(3):
            write_reached(tmp_path, "fast", study, "digits", 1, 10.0 + study, record=own_record(seed=study))
            write_reached(tmp_path, "slow", study, "digits", 1, 20.0 + study, record=own_record(seed=study))
        result = score_runs([tmp_path])
        assert result.version.name == "local"
        assert result.ruleset == "external"
        assert result.base_workloads == ("digits",)
        assert result.times == {"fast": {"digits": 11.0}, "slow": {"digits": 21.0}}
        assert result.by_workload(result.standing.steps)["fast"]["digits"] == 201
        assert result.scores["fast"] == 1.0
        assert result.standings[Rule.DOCUMENTED].scores[1] == pytest.approx((4 - 21 / 11) / 3)

    def test_void_trial_makes_a_study_incomplete_not_infinite(self, tmp_path, write_reached, own_record):
        for study, status in enumerate(("reached", "data_error", "reached")):
            record = own_record(status=status, void=status == "data_error", seed=study)
            at = math.inf if status == "data_error" else 10.0 + study
            write_reached(tmp_path, "alpha", study, "digits", 1, at, record=record)
        documented = score_runs([tmp_path], rule="documented")
        assert documented.times["alpha"]["digits"] == 11.0  # of 10 and 12
        assert documented.incomplete["alpha", "digits"] == ("study 1, trial 1: void (data_error)",)
        official = score_runs([tmp_path], rule="official")
        assert official.times["alpha"]["digits"] == 12.0  # of 10, 12 and infinity
        assert "void (data_error)" in official.differences[0].why

    @pytest.mark.parametrize("status", ["running", "preempted", "harness_error"])
    def test_unfinished_trials_give_no_result(self, tmp_path, write_reached, own_record, status):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record(status=status))
        result = score_runs([tmp_path], rule="documented")
        assert math.isnan(result.times["alpha"]["digits"])
        assert status in result.incomplete["alpha", "digits"][0]

    @pytest.mark.parametrize("status", ["budget_exhausted", "diverged", "submission_error", "out_of_memory"])
    def test_misses_are_infinite(self, tmp_path, write_trial, own_record, status):
        write_trial(tmp_path, record=own_record(status=status))
        for rule in Rule:
            time = score_runs([tmp_path], rule=rule).times["alpha"]["digits"]
            assert math.isinf(time) if rule is Rule.DOCUMENTED else math.isnan(time)

    def test_flags_reach_the_tables(self, tmp_path, write_reached, own_record, capsys):
        flags = [{"name": "data_stall", "reason": "12 % of the time was spent waiting", "severity": "warn"}]
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record(validity={"flags": flags}))
        assert cli.main(["score", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
        assert "data_stall in 1 trial, as: 12 % of the time" in capsys.readouterr().out
        (told,) = json.loads((tmp_path / "out.json").read_text())["flags"]["alpha"]["digits"]
        assert told == {**flags[0], "trials": 1}

    def test_flags_of_several_ranks_are_one_trial(self, tmp_path, write_reached, own_record):
        flags = [{"name": "calibration", "reason": f"rank {rank} slowed down"} for rank in range(2)]
        for study in range(2):
            record = own_record(validity={"flags": flags}, seed=study)
            write_reached(tmp_path, "alpha", study, "digits", 1, 10.0, record=record)
        (told,) = score_runs([tmp_path]).flags["alpha", "digits"]
        assert (told.flag.name, told.trials) == ("calibration", 2)

    @pytest.mark.parametrize("order", [1, -1])
    def test_of_flags_of_one_name_the_void_one_is_shown(self, tmp_path, write_reached, own_record, order):
        warned = {"name": "data_stall", "reason": "12 % of the time", "severity": "warn"}
        voided = {"name": "data_stall", "reason": "60 % of the time", "severity": "void"}
        for study, flags in enumerate([[warned], [warned, voided][::order]][::order]):
            write_reached(tmp_path, "alpha", study, "digits", 1, 10.0, record=own_record(validity={"flags": flags}))
        (told,) = score_runs([tmp_path]).flags["alpha", "digits"]
        assert (told.flag.reason, told.flag.severity, told.trials) == ("60 % of the time", "void", 2)

    @pytest.mark.parametrize(
        ("what", "change"),
        [
            ("hardware", {"environment": {"gpus": [{"name": "Big GPU"}]}}),
            ("compile policy", {"compile_policy": "fresh"}),
            ("clock", {"clock": "steps:0.01"}),
            ("model scale", {"options": {"model_scale": "test"}}),
        ],
    )
    def test_different_conditions_are_not_ranked_together(self, tmp_path, write_reached, own_record, what, change):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record())
        write_reached(tmp_path, "beta", 0, "digits", 1, 11.0, record=own_record(**change))
        with pytest.raises(LogError, match=f"differ in {what}.*--mixed"):
            score_runs([tmp_path])
        result = score_runs([tmp_path], mixed=True)
        assert any(what in text for text in result.warnings)
        assert score_runs([tmp_path], submissions=("beta",)).scores["beta"] == 1.0

    @pytest.mark.parametrize(("version", "scale"), [("mini", "mini"), ("mini", "full"), ("local", "mini")])
    def test_the_version_s_own_scale_is_ranked(self, tmp_path, write_reached, own_record, version, scale):
        record = own_record(version=version, options={"model_scale": scale})
        write_reached(tmp_path, "alpha", 0, "finewebedu_lm", 1, 10.0, version=version, record=record)
        told = [text for text in score_runs([tmp_path]).warnings if "not to be ranked" in text]
        assert bool(told) == (version != scale)
        if told:
            own = "mini" if version == "mini" else "full"
            assert f"Runs with --model-scale {scale}: version {version} has {own} models" in told[0]

    def test_a_score_of_mini_is_over_all_its_workloads(self, tmp_path, write_reached, own_record):
        record = own_record(version="mini", options={"model_scale": "mini"})
        workloads = load_version("mini").base_workloads
        for workload in workloads[1:]:
            write_reached(tmp_path, "alpha", 0, workload, 1, 10.0, version="mini", record=record)
        assert score_runs([tmp_path]).scores["alpha"] == pytest.approx((len(workloads) - 1) / len(workloads))

    def test_different_kernels_are_told(self, tmp_path, write_reached, own_record, capsys):
        kernels = {
            "alpha": {"choice": "default", "used": ["adam_"]},
            "beta": {"choice": "reference", "used": []},
            "gamma": {"choice": "default", "used": []},  # an optimizer that has none
        }
        for name, value in kernels.items():
            write_reached(tmp_path, name, 0, "digits", 1, 10.0, record=own_record(kernels=value))
        (note,) = [text for text in score_runs([tmp_path]).warnings if "kernels" in text]
        assert "kernels, --kernels default (alpha); plain PyTorch (beta, gamma)" in note
        assert not any("kernels" in text for text in score_runs([tmp_path], submissions=("beta", "gamma")).warnings)
        assert cli.main(["compare", str(tmp_path / "alpha"), str(tmp_path / "beta")]) == 0
        assert "may be the implementation" in " ".join(capsys.readouterr().out.split())

    def test_different_versions_are_not_ranked_together(self, tmp_path, write_reached, own_record):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record())
        write_reached(tmp_path, "beta", 0, "digits", 1, 11.0, record=own_record(version="mine"))
        with pytest.raises(LogError, match="several versions: local, mine"):
            score_runs([tmp_path])
        with pytest.raises(LogError, match="cannot be scored as local"):
            score_runs([tmp_path], "local")
        assert score_runs([tmp_path], "local", mixed=True).scores["alpha"] == 1.0

    def test_scored_beside_official_logs_only_when_told(self, tmp_path, write_reached, own_record):
        write_reached(tmp_path, "ours", 0, "ogbg", 1, 10.0, "v0.6", record=own_record(version="v0.6"))
        meta = {
            "meta_data_0.json": json.dumps({"gpu_model_name": "Tesla V100-SXM2-16GB", "gpu_count": 8, "rng_seed": -5})
        }
        write_reached(tmp_path, "theirs", 0, "ogbg", 1, 9.0, "v0.6", files=meta)
        with pytest.raises(LogError, match="8 x Tesla V100-SXM2-16GB"):
            score_runs([tmp_path], "v0.6")
        assert score_runs([tmp_path], "v0.6", mixed=True).scores["theirs"] == pytest.approx(1 / 8)

    def test_ending_exactly_on_the_target_is_told(self, tmp_path, write_trial, own_record):
        target = load_version("local").terms("digits").validation_target
        write_trial(tmp_path, seconds=[5.0, 10.0], values=[0.1, target], record=own_record(status="budget_exhausted"))
        result = score_runs([tmp_path])
        assert result.times["alpha"]["digits"] == 10.0
        assert "equals the target, which is enough for the official rule only" in result.differences[0].why

    def test_shared_seeds_are_told(self, tmp_path, write_reached, own_record):
        for study in range(2):
            write_reached(tmp_path, "alpha", study, "digits", 1, 10.0 + study, record=own_record(seed=3))
        assert any("2 trials share their seed" in p.message for p in score_runs([tmp_path]).problems)

    def test_nine_workloads(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "finewebedu_lm", 1, 10.0, "v1.0")
        result = score_runs([tmp_path], "v1.0", "self")
        assert len(result.base_workloads) == 9
        assert result.scores["alpha"] == pytest.approx(1 / 9)
        assert np.isnan(result.standing.test_times).all()  # it has no test target, and the others no logs

    def test_version_from_a_file(self, tmp_path, write_reached):
        own = tmp_path / "mine.toml"
        own.write_text('name = "mine"\ninherits = "local"\n[workloads.digits]\nvalidation_target = 0.5\n')
        write_reached(tmp_path / "runs", "alpha", 0, "digits", 1, 10.0)
        result = score_runs([tmp_path / "runs"], own)
        assert result.times["alpha"]["digits"] == 10.0
        with pytest.raises(UnknownNameError, match=r"v0\.9"):
            score_runs([tmp_path / "runs"], "v0.9")

    def test_runs_of_an_own_version_ask_for_its_file(self, tmp_path, write_reached, own_record):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record(version="mine"))
        with pytest.raises(LogError, match=r"'mine', which is not built in\. Add --version FILE\.toml"):
            score_runs([tmp_path])

    def test_strict_asks_for_every_study(self, tmp_path, write_reached):
        for study in range(3):
            for trial in range(1, 6):
                write_reached(tmp_path, "alpha", study, "digits", trial, 10.0 + study)
        score_runs([tmp_path], "local", strict=True)
        write_reached(tmp_path, "beta", 0, "digits", 1, 10.0)
        with pytest.raises(LogError, match="beta, digits, study 0: 1 of 5 trials"):
            score_runs([tmp_path], "local", strict=True)


class TestCommand:
    @pytest.fixture
    def runs(self, tmp_path, write_reached, own_record):
        for study in range(2):
            write_reached(tmp_path / "runs", "fast", study, "digits", 1, 10.0 + study, record=own_record(seed=study))
            write_reached(tmp_path / "runs", "slow", study, "digits", 1, 25.0 + study, record=own_record(seed=study))
        write_reached(tmp_path / "runs", "never", 0, "digits", 1, math.inf, record=own_record())
        return tmp_path / "runs"

    def test_tables(self, runs, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "140")
        assert cli.main(["score", str(runs)]) == 0
        out = capsys.readouterr().out
        assert "Version local, external ruleset, official rule: 5 trials, 1 workload" in out
        assert out.index("fast") < out.index("slow") < out.index("never")
        assert "not reached" in out
        assert "The ranking says nothing about others" in out.replace("the ranking", "The ranking")

    def test_json_has_no_infinities(self, runs, tmp_path):
        assert cli.main(["score", str(runs), "--json", str(tmp_path / "o.json"), "--reference", "slow"]) == 0
        content = json.loads((tmp_path / "o.json").read_text(), parse_constant=pytest.fail)
        assert content["scores"]["fast"] == 1.0
        assert content["times"] == {"fast": {"digits": 10.5}, "slow": {"digits": 25.5}, "never": {"digits": None}}
        assert content["ranks"] == {"fast": 1, "slow": 2, "never": 3}
        assert content["speedups"]["fast"] == pytest.approx(25.5 / 10.5)
        assert content["not_counted"]["never"] == {"digits": "target not reached"}
        assert content["rule"] == "official"
        assert set(content["scores_by_rule"]) == {"official", "documented"}

    def test_json_on_standard_output_stands_alone(self, runs, capsys):
        assert cli.main(["score", str(runs), "--json", "-"]) == 0
        assert json.loads(capsys.readouterr().out)["version"] == "local"

    def test_second_call_reads_the_cache(self, runs, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert cli.main(["score", str(runs), "--json", str(tmp_path / "first.json")]) == 0
        monkeypatch.setattr("algoperf_torch.scoring.logs.parse_table", lambda *_: pytest.fail("parsed again"))
        assert cli.main(["score", str(runs), "--json", str(tmp_path / "second.json")]) == 0
        assert (tmp_path / "first.json").read_text() == (tmp_path / "second.json").read_text()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--json", "no/such/folder/o.json"], "Cannot write no/such/folder/o.json"),
            (["--csv", "/dev/null/x"], "Cannot write to /dev/null/x"),
            (["--bootstrap", "-1"], "--bootstrap -1"),
            (["--relative"], "--relative needs --reference"),
            (["--reference", "nobody"], "No submission 'nobody'"),
            (["--submissions", "nobody"], "No submission 'nobody'"),
            (["--version", "v9"], "Unknown benchmark version 'v9'"),
            (["--version", "absent.toml"], "No version file absent.toml"),
            (["--version", "v0.6", "--mixed"], "None of the workloads in these runs"),
        ],
    )
    def test_mistakes_are_one_line(self, runs, arguments, message, capsys):
        assert cli.main(["score", str(runs), *arguments]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1

    def test_no_runs(self, capsys):
        with pytest.raises(UsageError, match="algoperf score runs/"):
            ScoreOptions(runs=())


def test_json_of_every_state_is_plain(small):
    root, _ = small
    text = json.dumps(to_json(score_runs([root], "v0.5", reference="dune")), allow_nan=False)
    assert json.loads(text)["speedups"]["amber"] is None


def test_progress_counts_to_the_end(small):
    root, _ = small
    seen = []
    logs = read_logs([root], progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(logs.trials), len(logs.trials))
    assert not [problem for problem in logs.problems if problem.severity is Severity.DAMAGED]


IMPORT_COST = """
import sys, time
started = time.perf_counter()
import {modules}
print(time.perf_counter() - started, "torch" in sys.modules)
"""


def test_import_is_cheap_and_never_loads_torch():
    ours = ", ".join(
        f"algoperf_torch.scoring.{name}" for name in ("score", "compare", "targets", "statistics", "terminal")
    )

    def cost(modules):
        seconds = []
        for _ in range(2):
            command = [sys.executable, "-c", IMPORT_COST.format(modules=modules)]
            spent, torch = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            assert torch == "False"
            seconds.append(float(spent))
        return min(seconds)

    assert cost(ours) <= 1.3 * cost("numpy, pandas")


@pytest.mark.slow
def test_all_external_trials_of_v05_in_three_seconds(tmp_path, write_trial):
    """3,881 trials, as many as the published external logs of v0.5 hold, cold, in a process of its own."""
    import resource

    version = load_version("v0.5")
    rng = np.random.default_rng(0)
    count = 0
    names = [*version.base_workloads, *version.held_out_workloads]
    for index in range(3881):
        submission, rest = divmod(index, 350)
        study, rest = divmod(rest, 70)
        workload, trial = names[rest // 5], rest % 5 + 1
        terms = version.terms(workload)
        rows = int(terms.budget_seconds / terms.eval_period_seconds)
        folder = tmp_path / "runs" / f"s{submission}" / f"study_{study}" / f"{workload}_jax" / f"trial_{trial}"
        folder.mkdir(parents=True)
        columns = ["accumulated_eval_time", "accumulated_submission_time", "global_step", "preemption_count", "score"]
        columns += [
            f"{split}/{metric}" for split in ("test", "train", "validation") for metric in ("x", terms.metric, "y")
        ]
        table = rng.random((rows, len(columns)))
        table[:, 1] = table[:, 4] = np.cumsum(rng.normal(terms.eval_period_seconds, 1, rows))
        table[:, 2] = np.arange(rows)
        with (folder / "eval_measurements.csv").open("w") as file:
            file.write(",".join(columns) + "\n")
            file.writelines(",".join(map(repr, row)) + "\n" for row in table.tolist())
        (folder / "hparams.json").write_text("{}")
        count += 1
    told = "import re, sys; from pathlib import Path; from algoperf_torch.cli import main; code = main(); "
    told += "status = Path('/proc/self/status').read_text(); "  # getrusage counts the parent's memory before exec
    told += "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1], file=sys.stderr); sys.exit(code)"
    command = [sys.executable, "-c", told, "score", str(tmp_path / "runs"), "--version", "v0.5"]
    command += ["--json", str(tmp_path / "o.json"), "--no-cache"]
    spent = math.inf
    for _ in range(3):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        peak = int(done.stderr.split()[-1]) / 1024  # MB
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
        spent = min(spent, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print(f"{count} trials: {wall:.2f} s, {spent:.2f} s of processor time, {peak:.0f} MB")
    assert spent < 3  # in one thread: on an idle machine this is the time that passes
    assert peak < 300


def test_a_ruleset_that_contradicts_the_runs_is_told(tmp_path, write_reached, own_record):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 3.0, record=own_record())
    assert (
        score_runs([tmp_path], ruleset="external", bootstrap=0).warnings == score_runs([tmp_path], bootstrap=0).warnings
    )
    (told,) = [text for text in score_runs([tmp_path], ruleset="self", bootstrap=0).warnings if "ruleset" in text]
    assert told.startswith("Scored by the self ruleset, but alpha ran under the other one")
