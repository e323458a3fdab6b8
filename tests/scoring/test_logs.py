"""What lies in run directories, good and bad: whatever it is, it is read or reported, and nothing crashes."""

import json
import os

import numpy as np
import pytest

from algoperf_torch import cli
from algoperf_torch.errors import LogError
from algoperf_torch.scoring.logs import Severity, read_logs
from algoperf_torch.scoring.report import render
from algoperf_torch.scoring.score import score_logs, score_runs

GOOD = "global_step,score,validation/accuracy\n1,1.0,0.1\n100,9.0,0.99\n"


def of(logs, severity):
    return [str(problem) for problem in logs.problems if problem.severity is severity]


class TestLayout:
    def test_root_and_single_submission(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
        for path in (tmp_path, tmp_path / "alpha", str(tmp_path)):
            (trial,) = read_logs([path]).trials
            assert (trial.submission, trial.study, trial.workload, trial.framework, trial.number) == (
                "alpha", 0, "digits", "pytorch", 1,
            )  # fmt: skip

    def test_current_directory(self, tmp_path, write_reached, monkeypatch):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
        monkeypatch.chdir(tmp_path / "alpha")
        assert read_logs(["."]).submissions == ("alpha",)

    def test_timestamped_siblings_are_one_submission(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
        write_reached(tmp_path, "alpha-2024-01-02-03-04-05", 1, "digits", 1, 12.0)
        logs = read_logs([tmp_path])
        assert logs.submissions == ("alpha",)
        assert [trial.study for trial in logs.trials] == [0, 1]

    def test_trial_in_both_siblings_counts_once_by_the_documented_rule(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 12.0)
        write_reached(tmp_path, "alpha-2024-01-02-03-04-05", 0, "digits", 1, 10.0, steps=[1, 2, 3])
        assert any("the same trial as" in text for text in of(read_logs([tmp_path]), Severity.IRREGULAR))
        assert score_runs([tmp_path], "local", rule="official").times["alpha"]["digits"] == 12.0  # a tie of indices
        assert score_runs([tmp_path], "local", rule="documented").times["alpha"]["digits"] == 12.0

    def test_equal_names_below_different_roots_are_told_apart(self, tmp_path, write_reached):
        for root in ("one", "two"):
            write_reached(tmp_path / root, "alpha", 0, "digits", 1, 10.0)
        assert read_logs([tmp_path / "one", tmp_path / "two"]).submissions == ("one/alpha", "two/alpha")

    def test_the_same_root_twice_is_read_once(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
        logs = read_logs([tmp_path, tmp_path / "alpha"])
        assert len(logs.trials) == 1
        assert any("read already" in text for text in of(logs, Severity.IRREGULAR))

    def test_order_does_not_depend_on_the_file_system(self, tmp_path, write_reached):
        for trial in (10, 2, 1):
            write_reached(tmp_path, "alpha", 0, "digits", trial, 10.0)
        assert [trial.number for trial in read_logs([tmp_path]).trials] == [1, 2, 10]

    def test_odd_trial_name_counts_for_the_official_rule_only(self, tmp_path, write_reached, write_trial):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 20.0)
        write_trial(tmp_path, "alpha", 0, "digits", "1_old", seconds=[5.0], values=[1.0])
        assert score_runs([tmp_path], "local", rule="official").times["alpha"]["digits"] == 5.0
        assert score_runs([tmp_path], "local", rule="documented").times["alpha"]["digits"] == 20.0

    def test_void_trials_that_were_set_aside_are_ignored(self, tmp_path, write_reached):
        write_reached(tmp_path, "alpha", 0, "digits", 1, 20.0)
        aside = tmp_path / "alpha" / "study_0" / "digits_pytorch" / "void_1_trial_1"
        aside.mkdir()
        (aside / "eval_measurements.csv").write_text(GOOD)
        logs = read_logs([tmp_path])
        assert len(logs.trials) == 1
        assert not of(logs, Severity.IRREGULAR)

    def test_copies_are_reported(self, tmp_path, write_trial):
        write_trial(tmp_path, files={"eval_measurements.csv": GOOD})
        write_trial(tmp_path, study=1, files={"eval_measurements.csv": GOOD})
        assert any("is a copy of" in text for text in of(read_logs([tmp_path]), Severity.IRREGULAR))

    def test_only_columns_of_scores_are_kept_unless_asked(self, tmp_path, write_trial):
        write_trial(tmp_path, files={"eval_measurements.csv": "score,train/loss,validation/accuracy\n1,2,3\n"})
        assert read_logs([tmp_path]).trials[0].evaluations.columns == ("score", "validation/accuracy")
        assert "train/loss" in read_logs([tmp_path], all_columns=True).trials[0].evaluations

    def test_preempted_rows_may_go_back_in_time(self, tmp_path, write_trial):
        rows = "global_step,preemption_count,score,validation/accuracy\n1,0,1,0\n9,0,9,0\n5,{},5,0\n"
        for study, count in enumerate((1, 0)):
            write_trial(tmp_path, study=study, files={"eval_measurements.csv": rows.format(count)})
        (told,) = of(read_logs([tmp_path]), Severity.IRREGULAR)
        assert "study_1" in told
        assert "runs backwards" in told

    def test_record_of_our_runs(self, tmp_path, write_reached, own_record):
        flags = {"flags": [{"name": "a", "reason": "b", "severity": "void"}]}
        write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=own_record(validity=flags))
        record = read_logs([tmp_path]).trials[0].record
        assert record.status == "reached"
        assert record.condition("hardware") == "Test CPU, 2 processors, 2 ranks"
        assert record.flags[0].name == "a"
        assert record.seed == 7


# Each: what is wrong, the files that make it so (path below the submission -> content), what is said.
DAMAGED = {
    "empty evaluation file": ({"eval_measurements.csv": ""}, "is empty"),
    "ragged evaluation file": ({"eval_measurements.csv": GOOD + "1,2\n"}, "row 4 has 2 cells"),
    "words for numbers": ({"eval_measurements.csv": GOOD + "1,soon,2\n"}, "'soon' is not a number"),
    "script for a number": (
        {"eval_measurements.csv": GOOD + "1,<script>alert(1)</script>,2\n"}, "is not a number",
    ),
    "negative time": ({"eval_measurements.csv": GOOD + "1,-5,2\n"}, "row 4: submission time -5.0 is not a time"),
    "infinite time": ({"eval_measurements.csv": GOOD + "1,inf,2\n"}, "submission time inf"),
    "missing time": ({"eval_measurements.csv": GOOD + "1,,2\n"}, "submission time nan"),
    "no time column": ({"eval_measurements.csv": "global_step\n1\n"}, "has no column 'score'"),
    "no metric column": ({"eval_measurements.csv": "score\n1\n"}, "has no column 'validation/accuracy'"),
    "column twice": ({"eval_measurements.csv": "score,score\n1,1\n"}, "names the column 'score' twice"),
    "binary evaluation file": ({"eval_measurements.csv": b"\x00\xff\x00"}, "is not ASCII"),
    "torn JSON": ({"eval_measurements.csv": GOOD, "trial.json": '{"status": "rea'}, "is not valid JSON"),
    "JSON of another kind": ({"eval_measurements.csv": GOOD, "trial.json": "[]"}, "holds a JSON list"),
    "deep JSON": ({"eval_measurements.csv": GOOD, "trial.json": "[" * 100_000}, "is not valid JSON"),
    "unknown status": ({"eval_measurements.csv": GOOD, "trial.json": '{"status": "fine"}'}, "unknown status 'fine'"),
    "status of another type": ({"eval_measurements.csv": GOOD, "trial.json": '{"status": 3}'}, "entry 'status' is '3'"),
    "void of another type": ({"eval_measurements.csv": GOOD, "trial.json": '{"void": "no"}'}, "entry 'void' is 'no'"),
    "flags of another type": (
        {"eval_measurements.csv": GOOD, "trial.json": '{"validity": {"flags": ["x"]}}'}, "is not an object",
    ),
    "other separators": ({"eval_measurements.csv": GOOD.replace(",", ";")}, "is not a number"),
    "a time beyond all numbers": ({"eval_measurements.csv": GOOD + "1,1e999,2\n"}, "submission time inf is not a time"),
    "a cell of thousands of digits": (
        {"eval_measurements.csv": GOOD + "1," + "9" * 5000 + ",2\n"}, "submission time inf is not a time",
    ),
    "underscores in a number": ({"eval_measurements.csv": GOOD + "1,1_000,2\n"}, "'1_000' is not a number"),
    "a quotation that does not end": ({"eval_measurements.csv": GOOD + '"1,3,2\n'}, "is not a CSV file"),
    "two bytes a character": ({"eval_measurements.csv": GOOD.encode("utf-16")}, "is not ASCII"),
    "blank lines": ({"eval_measurements.csv": "\n\n\n"}, "is empty"),
    "a directory for evaluations": ({"eval_measurements.csv/x": ""}, "eval_measurements.csv: is a directory"),
    "a directory for a record": ({"eval_measurements.csv": GOOD, "trial.json/x": ""}, "trial.json: is a directory"),
    "a number that JSON does not have": ({"eval_measurements.csv": GOOD, "trial.json": '{"void": NaN}'}, "'void' is 'nan'"),
    "seeds of another type": ({"eval_measurements.csv": GOOD, "trial.json": '{"seeds": [1]}'}, "entry 'seeds' is '[1]'"),
    "environment of another type": (
        {"eval_measurements.csv": GOOD, "trial.json": '{"environment": "x"}'}, "entry 'environment' is 'x'",
    ),
    "an entry twice": (
        {"eval_measurements.csv": GOOD, "trial.json": '{"status": "reached", "status": "void"}'}, "unknown status 'void'",
    ),
    "meta data damaged": ({"eval_measurements.csv": GOOD, "meta_data_0.json": "{"}, "meta_data_0.json: is not valid"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_reported_by_path_and_refused_when_strict(tmp_path, write_reached, write_trial, case, capsys):
    files, message = DAMAGED[case]
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    folder = write_trial(tmp_path, "alpha", 1)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = score_runs([tmp_path], "local")
    (told,) = of(result.logs, Severity.DAMAGED)
    assert str(folder) in told
    assert message in told
    documented = score_runs([tmp_path], "local", rule="documented")
    if "meta data" not in case:
        assert documented.times["alpha"]["digits"] == 10.0  # the other study alone
        assert "study 1" in documented.incomplete["alpha", "digits"][0]
    assert cli.main(["score", str(tmp_path), "--version", "local"]) == 0
    assert "Damaged:" in capsys.readouterr().out
    with pytest.raises(LogError, match="--strict: 1 damaged"):
        score_runs([tmp_path], "local", strict=True)


def empty(root):
    pass


def only_files(root):
    (root / "notes.txt").write_text("hello")


def study_without_trials(root):
    (root / "alpha" / "study_0" / "digits_pytorch").mkdir(parents=True)


def one_level_too_deep(root):
    (root / "external" / "alpha" / "study_0").mkdir(parents=True)


def two_frameworks(root):
    for name in ("digits_jax", "digits_pytorch"):
        folder = root / "alpha" / "study_0" / name / "trial_1"
        folder.mkdir(parents=True)
        (folder / "eval_measurements.csv").write_text(GOOD)


def unknown_workload(root):
    folder = root / "alpha" / "study_0" / "juggling_pytorch" / "trial_1"
    folder.mkdir(parents=True)
    (folder / "eval_measurements.csv").write_text(GOOD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty, "No submission in .*Expected .*/<submission>/study_<j>/<workload>_pytorch/trial_<i>/eval_measure"),
        (only_files, "No submission in"),
        (study_without_trials, "No trials in .*there are studies, but nothing in them"),
        (one_level_too_deep, "did you mean .*external"),
        (two_frameworks, "logs of digits in two frameworks: .*digits_jax.*digits_pytorch"),
        (unknown_workload, "None of the workloads in these runs .juggling. counts"),
    ],
)
def test_unusable_directories(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(LogError, match=message):
        score_runs([tmp_path], "local")


def test_paths_that_are_none(tmp_path):
    with pytest.raises(LogError, match="No directory"):
        read_logs([tmp_path / "absent"])
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="is a file"):
        read_logs([tmp_path / "file"])
    with pytest.raises(LogError, match="No run directory given"):
        read_logs([])


def test_official_logs_need_a_version(tmp_path, write_reached):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    with pytest.raises(LogError, match=r"do not say which benchmark version.*--version"):
        score_runs([tmp_path])


def test_unknown_workloads_are_noted_beside_known_ones(tmp_path, write_reached):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    unknown_workload(tmp_path)
    result = score_runs([tmp_path], "local")
    assert result.base_workloads == ("digits",)
    assert "workload juggling: ignored: version local has no such workload" in of(result.logs, Severity.IRREGULAR)


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD, GOOD.replace("\n", "\r\n"), GOOD.replace(",9.0,", ", 9.0 ,"), GOOD.rstrip("\n"),
        '"global_step","score","validation/accuracy"\n' + GOOD.partition("\n")[2],
    ],
    ids=["byte order mark", "carriage returns", "spaces", "no last line feed", "quoted header"],
)  # fmt: skip
def test_what_other_programs_write_is_read(tmp_path, write_trial, text):
    (write_trial(tmp_path, "alpha", 0) / "eval_measurements.csv").write_bytes(text.encode())
    (trial,) = read_logs([tmp_path]).trials
    assert trial.unusable is None
    assert trial.seconds.tolist() == [float(line.split(",")[1]) for line in GOOD.splitlines()[1:]]


@pytest.mark.parametrize("steps", [(1, 1), (2, 1), (-1, 1), (1, "")], ids=str)
def test_steps_that_do_not_count_up_are_told(tmp_path, write_trial, steps):
    rows = "".join(f"{step},{time},0.5\n" for step, time in zip(steps, (1.0, 2.0), strict=True))
    folder = write_trial(tmp_path, "alpha", 0)
    (folder / "eval_measurements.csv").write_text("global_step,score,validation/accuracy\n" + rows)
    (told,) = of(read_logs([tmp_path]), Severity.IRREGULAR)
    assert "the steps are not whole numbers that grow" in told


@pytest.mark.parametrize(
    "content",
    [
        {"status": "reached", "seeds": {"trial": 1e400}},
        {
            "status": "reached",
            "environment": {"gpus": [3, {"name": 5}], "cpu": {"model": [1]}},
            "result": {"steps": "x"},
        },
        {"status": "reached", "submission": {"sources": [5], "digest": 3, "name": []}, "setup_seconds": {"a": "b"}},
    ],
    ids=["endless seed", "odd machine", "odd submission"],
)
def test_odd_entries_that_no_score_depends_on_do_no_harm(tmp_path, write_reached, content):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, record=content)
    result = score_logs(read_logs([tmp_path], all_columns=True), "local")
    assert result.times["alpha"]["digits"] == 10.0
    assert "alpha" in render(result)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": {"b": "</script><script>alert(1)</script>"}, "n": 1e400}'])
def test_hyperparameters_that_are_none(tmp_path, write_reached, text):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0, files={"hparams.json": text})
    page = render(score_logs(read_logs([tmp_path], all_columns=True), "local"))
    assert "<script>alert" not in page


def test_symbolic_links_that_lead_in_circles(tmp_path, write_reached):
    folder = write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "alpha" / "study_1").symlink_to(tmp_path / "alpha")
    (folder.parent / "trial_2").symlink_to(folder.parent)
    (folder.parent / "trial_3").symlink_to(tmp_path / "nowhere")
    (folder / "trial.json").symlink_to(folder / "trial.json")
    result = score_runs([tmp_path], "local")
    assert result.times["alpha"]["digits"] == 10.0
    assert result.problems


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, write_reached, write_trial):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    os.mkfifo(write_trial(tmp_path, "alpha", 1) / "eval_measurements.csv")
    assert "is not a regular file" in of(read_logs([tmp_path]), Severity.DAMAGED)[0]


def test_huge_file_is_not_read(tmp_path, write_reached, write_trial):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    with (write_trial(tmp_path, "alpha", 1) / "eval_measurements.csv").open("wb") as file:
        file.truncate(2**40)  # a terabyte of nothing, sparse
    assert "bytes; a log has at most" in of(read_logs([tmp_path]), Severity.DAMAGED)[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_directory(tmp_path, write_reached):
    write_reached(tmp_path, "alpha", 0, "digits", 1, 10.0)
    locked = write_reached(tmp_path, "alpha", 1, "digits", 1, 10.0)
    locked.chmod(0)
    try:
        assert "Permission denied" in of(read_logs([tmp_path]), Severity.DAMAGED)[0]
    finally:
        locked.chmod(0o700)


@pytest.mark.parametrize(
    "name",
    [
        "<img src=x onerror=alert(1)>",
        "[red]bold",
        "a\x1b[2Jb",
        "new\nline",
        "ünï",
        "-rf",
        "a" * 200,
    ],
)
def test_names_are_names(tmp_path, write_reached, name, capsys):
    write_reached(tmp_path, name, 0, "digits", 1, 10.0)
    assert score_runs([tmp_path], "local").times[name]["digits"] == 10.0
    out = tmp_path / "o.json"
    assert (
        cli.main(["score", str(tmp_path), "--version", "local", "--json", str(out), "--csv", str(tmp_path / "csv")])
        == 0
    )
    assert json.loads(out.read_text())["scores"] == {name: 1.0}
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown
    assert {path.parent for path in (tmp_path / "csv").rglob("*.csv")} == {tmp_path / "csv"}


def test_names_that_are_not_unicode(tmp_path, write_reached, capsys):
    name = os.fsdecode(b"caf\xe9")
    write_reached(tmp_path, name, 0, "digits", 1, 10.0)
    assert cli.main(["score", str(tmp_path), "--version", "local", "--csv", str(tmp_path / "csv")]) == 0
    assert "caf" in capsys.readouterr().out


def test_unfinished_last_line_is_told(tmp_path, write_trial):
    write_trial(tmp_path, files={"eval_measurements.csv": GOOD.rstrip("\n")})
    assert any("may be cut off" in text for text in of(read_logs([tmp_path]), Severity.IRREGULAR))


def test_selecting_submissions(tmp_path, write_reached):
    for name in ("alpha", "beta"):
        write_reached(tmp_path, name, 0, "digits", 1, 10.0)
    logs = read_logs([tmp_path])
    assert logs.select(["beta"]).submissions == ("beta",)
    with pytest.raises(LogError, match="No submission 'gamma'"):
        logs.select(["gamma"])
    assert np.array_equal(logs.trials[0].seconds, [2.5, 5.0, 10.0])
