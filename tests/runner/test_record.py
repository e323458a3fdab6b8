"""The files of a trial: official columns, append-only, crash-safe."""

from __future__ import annotations

import csv
import json
import stat

import pytest

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.runner.record import CsvLog, TrialRecord, read_heartbeat, read_json, read_rows, trial_directory
from algoperf_torch.runner.status import Phase


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_directory_layout(tmp_path):
    path = trial_directory(tmp_path, "nadamw", 2, "digits", 3)
    assert path == tmp_path / "nadamw" / "study_2" / "digits_pytorch" / "trial_3"


def test_header_is_sorted_and_later_columns_are_appended(tmp_path):
    log = CsvLog(tmp_path / "m.csv")
    log.append([{"b": 1, "a": 0.1}])
    log.append([{"a": 2.0, "b": 3}])
    inode = (tmp_path / "m.csv").stat().st_ino
    log.append([{"c": 5, "a": 1.0, "Z": 0}])
    assert (tmp_path / "m.csv").read_text() == "a,b,Z,c\n0.1,1,,\n2.0,3,,\n1.0,,0,5\n"
    assert (tmp_path / "m.csv").stat().st_ino != inode  # replaced, not edited


def test_appending_never_touches_what_is_there(tmp_path):
    log = CsvLog(tmp_path / "m.csv")
    log.append([{"a": 1}])
    before, inode = (tmp_path / "m.csv").read_bytes(), (tmp_path / "m.csv").stat().st_ino
    log.append([{"a": 2}])
    assert (tmp_path / "m.csv").read_bytes().startswith(before)
    assert (tmp_path / "m.csv").stat().st_ino == inode


def test_floats_keep_all_digits(tmp_path):
    value = 0.1 + 0.2
    CsvLog(tmp_path / "m.csv").append([{"a": value}])
    assert float(rows_of(tmp_path / "m.csv")[0]["a"]) == value


def test_a_torn_last_line_is_left_out(tmp_path):
    (tmp_path / "m.csv").write_text("a,b\n1,2\n3,")
    assert read_rows(tmp_path / "m.csv") == [{"a": "1", "b": "2"}]


@pytest.fixture
def record(tmp_path):
    record = TrialRecord(tmp_path / "trial_1")
    yield record
    record.close()


def evaluation(step, **more):
    return {"score": step * 0.5, "global_step": step, "validation/accuracy": 0.5, **more}


@pytest.mark.parametrize("crash", ["before the files", "torn line", "after the files", "rows from a lost future"])
def test_files_follow_the_checkpoint(record, crash):
    scalars = [{"global_step": 2, "grad_norm": 1.5}]
    record.add_evaluation(evaluation(1), [])
    record.add_evaluation(evaluation(3), scalars)
    evaluations = [evaluation(1), evaluation(3)]
    total, last = record.num_measurements, [*scalars, evaluation(3)]
    directory = record.directory
    if crash == "before the files":
        (directory / "eval_measurements.csv").write_text("global_step,score,validation/accuracy\n1,0.5,0.5\n")
        (directory / "measurements.csv").write_text("global_step,score,validation/accuracy\n1,0.5,0.5\n")
    elif crash == "torn line":
        for name in ("eval_measurements.csv", "measurements.csv"):
            text = (directory / name).read_text()
            (directory / name).write_text(text[:-4])
    elif crash == "rows from a lost future":
        record.add_evaluation(evaluation(9), [{"global_step": 8, "grad_norm": 2.0}])
    again = TrialRecord(directory)
    again.restore(evaluations, total, last)
    assert [row["global_step"] for row in rows_of(directory / "eval_measurements.csv")] == ["1", "3"]
    assert [row["global_step"] for row in rows_of(directory / "measurements.csv")] == ["1", "2", "3"]
    again.add_evaluation(evaluation(5), [])
    assert [row["global_step"] for row in rows_of(directory / "measurements.csv")] == ["1", "2", "3", "5"]
    again.close()


def test_trial_json_is_replaced_as_a_whole(record):
    record.start({"status": "running"}, {"lr": 0.1})
    record.update(status="reached", result={"steps": 3})
    value = json.loads((record.directory / "trial.json").read_text())
    assert value["status"] == "reached"
    assert value["heartbeat"] > 0
    assert json.loads((record.directory / "hparams.json").read_text()) == {"lr": 0.1}
    assert not list(record.directory.glob(".*.tmp"))


def test_heartbeat_tells_step_and_phase(record):
    record.heartbeat.enter(Phase.TRAINING, 41)
    record.heartbeat.beat(42)
    step, phase, when = read_heartbeat(record.directory / "heartbeat")
    assert (step, phase) == (42, Phase.TRAINING)
    assert when > 0


def test_no_heartbeat_yet(tmp_path):
    assert read_heartbeat(tmp_path / "heartbeat") is None
    (tmp_path / "heartbeat").write_bytes(b"short")
    assert read_heartbeat(tmp_path / "heartbeat") is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_a_damaged_json_file_is_an_error_of_ours(tmp_path, text):
    (tmp_path / "trial.json").write_text(text, encoding="latin-1")
    with pytest.raises(LogError, match=r"trial\.json"):
        read_json(tmp_path / "trial.json")


def test_a_file_in_the_way_is_an_error_of_ours(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="Choose another --out"):
        TrialRecord(tmp_path / "runs" / "trial_1")


def test_modes_are_ordinary(record):
    record.update(status="running")
    assert stat.S_IMODE((record.directory / "trial.json").stat().st_mode) & 0o600 == 0o600
