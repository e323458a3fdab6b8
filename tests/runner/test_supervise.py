"""What the supervisor concludes from what it saw, without starting anything."""

import fcntl
import json
import os
import signal

import pytest

from algoperf_torch.runner.record import Heartbeat
from algoperf_torch.runner.status import Phase, Status, is_void
from algoperf_torch.runner.supervise import (
    Ended,
    begin_attempt,
    close,
    close_abandoned,
    is_locked,
    oom_kills,
    read_attempts,
    verdict,
)


@pytest.fixture
def trial_path(tmp_path):
    folder = tmp_path / "trial_1"
    folder.mkdir()
    return folder


TIMED, UNTIMED = [Phase.INIT, Phase.TRAINING], [Phase.SETUP, Phase.EVALUATION, Phase.CHECKPOINT, Phase.FINISHED]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(
    ("facts", "in_timed_phase", "elsewhere"),
    [
        ({"exit_code": 0}, Status.SUBMISSION_ERROR, Status.HARNESS_ERROR),
        ({"exit_code": 1}, Status.SUBMISSION_ERROR, Status.HARNESS_ERROR),
        ({"exit_code": 75}, Status.PREEMPTED, Status.PREEMPTED),
        ({"signal": signal.SIGSEGV}, Status.SUBMISSION_ERROR, Status.HARNESS_ERROR),
        ({"signal": signal.SIGABRT}, Status.SUBMISSION_ERROR, Status.HARNESS_ERROR),
        ({"signal": signal.SIGKILL}, Status.PREEMPTED, Status.PREEMPTED),
        ({"signal": signal.SIGKILL, "oom_killed": True}, Status.OUT_OF_MEMORY, Status.OUT_OF_MEMORY),
        ({"signal": signal.SIGTERM}, Status.PREEMPTED, Status.PREEMPTED),
        ({"signal": signal.SIGHUP}, Status.PREEMPTED, Status.PREEMPTED),
        ({"signal": signal.SIGABRT, "hung": True}, Status.SUBMISSION_ERROR, Status.HARNESS_ERROR),
        ({"signal": signal.SIGKILL, "hung": True, "oom_killed": True}, Status.SUBMISSION_ERROR, Status.HARNESS_ERROR),
        ({"exit_code": 1, "stopped": True}, Status.PREEMPTED, Status.PREEMPTED),
    ],
    ids=str,
)
def test_verdict(facts, in_timed_phase, elsewhere, phase):
    status, reason = verdict(Ended(phase=phase, step=7, **facts))
    assert status is (in_timed_phase if phase in TIMED else elsewhere)
    assert phase.name.lower() in reason
    assert "step 7" in reason


def test_what_voids_a_trial():
    for phase in Phase:
        assert not is_void(Status.SUBMISSION_ERROR, phase)
        assert is_void(Status.PREEMPTED, phase)
        assert is_void(Status.HARNESS_ERROR, phase)
        assert is_void(Status.OUT_OF_MEMORY, phase) is (phase in UNTIMED)


def test_counters_of_both_kinds_of_control_groups(tmp_path):
    assert oom_kills(tmp_path) == ()
    files = {
        "proc/vmstat": "pgfault 3\noom_kill 5\n",
        "proc/self/cgroup": "4:cpu,memory:/old\n3:cpuset:/\n0::/new/leaf\n",
        "sys/fs/cgroup/new/leaf/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
        "sys/fs/cgroup/memory/old/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == (5, 1, 2)


def test_this_machine_has_a_counter():
    assert all(count >= 0 for count in oom_kills())


def test_lock(trial_path):
    assert not is_locked(trial_path)
    with (trial_path / ".lock").open("w") as file:
        assert not is_locked(trial_path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_locked(trial_path)
    assert not is_locked(trial_path)


# ---------------------------------------------------------------- the record


def write_trial(directory, **entries):
    trial = {"status": "reached", "void": False, "clock": "real", "result": {"submission_seconds": 100.0, "steps": 9}}
    (directory / "trial.json").write_text(json.dumps({**trial, **entries}))


def closed(directory, *, wall=130.0, training=100.0, attempts=None, **entries):
    write_trial(directory, **entries)
    attempts = attempts or begin_attempt(directory, resumed=False)
    ended = Ended(exit_code=0, wall_seconds=wall, phase_seconds={"training": training})
    return close(directory, attempts, ended, "last words")


@pytest.mark.parametrize("training", [90.0, 100.0, 109.0])
def test_a_clock_that_agrees(trial_path, training):
    summary = closed(trial_path, training=training)
    assert not summary["void"]
    assert "validity" not in summary
    assert summary["supervisor"]["wall_seconds"] == 130.0
    assert summary == json.loads((trial_path / "trial.json").read_text())


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ({"training": 111.0}, "100.0 s were charged, but the supervisor saw 111.0 s of training"),
        ({"wall": 89.0, "training": 80.0}, "100.0 s were charged, but the processes lived for 89.0 s only"),
    ],
)
def test_a_clock_that_lies_voids_the_trial(trial_path, seen, reason):
    summary = closed(trial_path, validity={"flags": [{"name": "other"}]}, **seen)
    assert summary["void"]
    assert [flag["name"] for flag in summary["validity"]["flags"]] == ["other", "clock"]
    assert summary["validity"]["flags"][1]["reason"] == reason


def test_the_clock_of_a_trial_that_was_cut_off_is_not_judged(trial_path):
    summary = closed(trial_path, training=500.0, status="running")
    assert (summary["status"], summary["void"]) == ("harness_error", True)
    assert "validity" not in summary


def test_checkpoints_that_nobody_needs_are_removed(trial_path):
    checkpoint = trial_path / "checkpoint_000000001.pt"
    checkpoint.write_text("state")
    closed(trial_path, status="preempted", void=True)
    assert checkpoint.exists()
    closed(trial_path, status="submission_error")
    assert not checkpoint.exists()


def test_an_injected_clock_is_not_judged(trial_path):
    assert not closed(trial_path, wall=1.0, training=1.0, clock="steps:1")["void"]


def test_a_resumed_trial_may_show_more_training_than_it_charges(trial_path):
    attempts = begin_attempt(trial_path, resumed=False)
    closed(trial_path, attempts=attempts, wall=70.0, training=60.0, status="preempted", void=True)
    attempts = begin_attempt(trial_path, resumed=True)
    summary = closed(trial_path, attempts=attempts, wall=70.0, training=60.0)
    assert not summary["void"]
    assert summary["supervisor"]["wall_seconds"] == 140.0
    assert summary["supervisor"]["attempts"] == 2


def test_an_attempt_that_nobody_saw_to_its_end_proves_nothing(trial_path):
    begin_attempt(trial_path, resumed=False)  # its supervisor was killed
    attempts = begin_attempt(trial_path, resumed=True)
    assert not closed(trial_path, attempts=attempts, wall=10.0, training=5.0)["void"]


def test_a_fresh_start_forgets_the_times_of_void_attempts(trial_path):
    attempts = begin_attempt(trial_path, resumed=False)
    closed(trial_path, attempts=attempts, wall=500.0, status="harness_error", void=True)
    attempts = begin_attempt(trial_path, resumed=False)
    assert closed(trial_path, attempts=attempts)["supervisor"]["wall_seconds"] == 130.0


ERROR = {"type": "RuntimeError", "message": "Connection closed by peer", "phase": "training"}


@pytest.mark.parametrize(
    ("wrote", "ended", "status"),
    [
        ("harness_error", {"signal": 9}, "preempted"),
        ("submission_error", {"signal": 9}, "preempted"),
        ("submission_error", {"signal": 9, "oom_killed": True}, "out_of_memory"),
        ("harness_error", {"exit_code": 1}, "submission_error"),  # the other rank left by itself, in a timed phase
        ("submission_error", {"exit_code": 3}, "submission_error"),
        ("reached", {"signal": 9}, "reached"),  # the process was killed after its last word
    ],
)
def test_rank_0_cannot_know_why_another_rank_is_gone(trial_path, wrote, ended, status):
    entries = {} if wrote == "reached" else {"error": ERROR}
    write_trial(trial_path, status=wrote, **entries)
    attempts = begin_attempt(trial_path, resumed=False)
    summary = close(trial_path, attempts, Ended(phase=Phase.FINISHED, wall_seconds=100.0, **ended), "")
    assert summary["status"] == status
    assert summary["void"] is (status == "preempted")


def test_a_rank_that_said_why_it_failed_is_believed(trial_path):
    write_trial(trial_path, status="harness_error", void=True, error=ERROR)
    (trial_path / "error_rank_1.json").write_text("{}")
    attempts = begin_attempt(trial_path, resumed=False)
    assert close(trial_path, attempts, Ended(exit_code=1), "")["status"] == "harness_error"


def test_no_record_without_a_trial(trial_path):
    attempts = begin_attempt(trial_path, resumed=False)
    assert close(trial_path, attempts, Ended(exit_code=2), "no data") is None
    assert read_attempts(trial_path)[0]["message"] == "no data"


def test_a_trial_of_somebody_else_is_not_closed(trial_path):
    attempts = begin_attempt(trial_path, resumed=False)
    write_trial(trial_path, status="running")
    with (trial_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert close(trial_path, attempts, Ended(exit_code=2), "in use") is None
    assert json.loads((trial_path / "trial.json").read_text())["status"] == "running"


def test_an_abandoned_trial_is_preempted(trial_path):
    write_trial(trial_path, status="running", void=True)
    heartbeat = Heartbeat(trial_path / "heartbeat")
    heartbeat.enter(Phase.EVALUATION, 12)
    close_abandoned(trial_path)
    summary = json.loads((trial_path / "trial.json").read_text())
    assert (summary["status"], summary["void"], summary["error"]["phase"]) == ("preempted", True, "evaluation")
    assert "step 12" in summary["error"]["message"]
    heartbeat.close()


def test_attempts_name_their_supervisor(trial_path):
    attempts = begin_attempt(trial_path, resumed=False)
    assert attempts[0]["supervisor"]["pid"] == os.getpid()
    assert read_attempts(trial_path) == attempts
