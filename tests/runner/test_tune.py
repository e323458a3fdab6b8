"""The supervisor with trials that end in every way: what is recorded, what is run again, what is left behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from algoperf_torch.errors import UsageError
from algoperf_torch.runner import supervise
from algoperf_torch.runner import tune as tune_module
from algoperf_torch.runner.plan import State, SubmissionFacts, make_plan
from algoperf_torch.runner.record import read_heartbeat
from algoperf_torch.runner.status import Phase
from algoperf_torch.runner.supervise import is_locked, read_attempts
from algoperf_torch.runner.tune import TuneOptions, tune
from algoperf_torch.spec import Ruleset

FAKE = Path(__file__).parents[1] / "data" / "fake_trial.py"
FACTS = SubmissionFacts(
    name="fake", digest="d1", points={study: [{"lr": 0.1 * n} for n in (1, 2, 3)] for study in range(3)}
)


def fake_command(modes):
    """Trials that end as `modes` says: {(study, trial): mode}; the others reach their target."""

    def command(trial, ranks):
        options = trial.options
        context = {
            "directory": str(trial.directory),
            "version": options.version,
            "ruleset": options.ruleset.value,
            "workload": options.workload,
            "study": options.study,
            "trial": options.trial,
            "submission": {"name": "fake", "digest": "d1"},
            "hyperparameters": dict(trial.point),
            "seeds": {"run": options.seed},
        }
        mode = modes.get((options.study, options.trial), "reached")
        return [sys.executable, str(FAKE), mode, json.dumps(context)]

    return command


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(tune_module, "POLL_SECONDS", 0.03)


@pytest.fixture
def options(tmp_path):
    """Makes options for three trials of one study on digits."""

    def make(**others):
        defaults = {"workloads": ("digits",), "studies": (0,), "probe_steps": 0, "device": "cpu"}
        return TuneOptions(submission="fake", out=tmp_path, **{**defaults, **others})

    return make


def trial_folder(out, study=0, trial=1, workload="digits"):
    return out / "fake" / f"study_{study}" / f"{workload}_pytorch" / f"trial_{trial}"


def summary(out, study=0, trial=1):
    return json.loads((trial_folder(out, study, trial) / "trial.json").read_text())


# ---------------------------------------------------------------- ways to end


def test_all_trials_run_and_a_second_call_has_nothing_to_do(options, tmp_path, capsys):
    assert tune(options(studies=(0, 1)), command=fake_command({}), facts=FACTS) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trial.json")}
    assert len(written) == 6
    assert "6 reached" in capsys.readouterr().out
    assert tune(options(studies=(0, 1)), command=fake_command({(0, 1): "miss"}), facts=FACTS) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("trial.json")} == written
    seeds = {json.loads(path.read_text())["seeds"]["run"] for path in written}
    assert len(seeds) == 1  # drawn once, found again


@pytest.mark.parametrize(
    ("mode", "status", "void", "reason"),
    [
        ("exit init", "submission_error", False, "exit status 0"),
        ("exit training", "submission_error", False, "exit status 0"),
        ("exit setup", "harness_error", True, "exit status 0"),
        ("exit evaluation", "harness_error", True, "exit status 0"),
        ("exit checkpoint", "harness_error", True, "exit status 0"),
        ("segfault", "submission_error", False, "SIGSEGV"),
        ("miss", "submission_error", False, None),
        ("void", "harness_error", True, None),
    ],
)
def test_every_end_gets_its_name_and_the_next_trial_runs(options, tmp_path, mode, status, void, reason):
    code = tune(options(trials=(1, 2)), command=fake_command({(0, 1): mode}), facts=FACTS)
    assert code == (1 if void else 0)
    first = summary(tmp_path)
    assert (first["status"], first["void"]) == (status, void)
    if reason is not None:
        assert reason in first["error"]["message"]
    assert first["supervisor"]["attempts"] == 1
    assert summary(tmp_path, trial=2)["status"] == "reached"


@pytest.mark.parametrize(
    ("phase", "status", "void"), [("training", "submission_error", False), ("evaluation", "harness_error", True)]
)
def test_a_trial_that_hangs_is_killed_and_its_stacks_are_in_the_log(options, tmp_path, phase, status, void):
    command = fake_command({(0, 1): f"hang {phase}"})
    tune(options(trials=(1, 2), hang_timeout=4.0), command=command, facts=FACTS)
    first = summary(tmp_path)
    assert (first["status"], first["void"]) == (status, void)
    assert f"Hung while in phase {phase}" in first["error"]["message"]
    assert first["supervisor"]["phase_seconds"][phase] == pytest.approx(4.0, abs=2.0)
    log = trial_folder(tmp_path).parent / "output_trial_1.log"
    assert "fake_trial.py" in log.read_text()
    assert summary(tmp_path, trial=2)["status"] == "reached"


def test_a_long_evaluation_that_goes_on_is_no_hang(options, tmp_path):
    command = fake_command({(0, 1): "slow evaluation"})
    assert tune(options(trials=(1,), hang_timeout=4.0), command=command, facts=FACTS) == 0
    assert summary(tmp_path)["status"] == "reached"


def test_a_trial_that_damages_its_record_is_alone_in_trouble(options, tmp_path, capsys):
    assert tune(options(trials=(1, 2)), command=fake_command({(0, 1): "scribble"}), facts=FACTS) == 1
    assert "Cannot read" in capsys.readouterr().out
    assert summary(tmp_path, trial=2)["status"] == "reached"


def test_a_full_disk_ends_the_supervisor_with_a_message_and_leaves_nothing_running(options, tmp_path, monkeypatch):
    begin_attempt = tune_module.begin_attempt

    def full(directory, *, resumed):
        if directory.name == "trial_2":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
        return begin_attempt(directory, resumed=resumed)

    monkeypatch.setattr(tune_module, "begin_attempt", full)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(UsageError, match="No space left on device"):
        tune(options(jobs=2), command=fake_command({(0, 1): "hang training"}), facts=FACTS)
    assert not is_locked(trial_folder(tmp_path))


def test_a_trial_killed_from_outside_is_resumed(options, tmp_path):
    assert tune(options(trials=(1,)), command=fake_command({(0, 1): "kill once"}), facts=FACTS) == 0
    first = summary(tmp_path)
    assert first["status"] == "reached"
    assert first["resumed"]
    attempts = read_attempts(trial_folder(tmp_path))
    assert [(attempt["signal"], attempt["status"]) for attempt in attempts] == [(9, "preempted"), (None, "reached")]
    assert first["supervisor"]["wall_seconds"] == pytest.approx(sum(attempt["wall_seconds"] for attempt in attempts))


def test_a_trial_killed_before_its_first_checkpoint_starts_anew_and_the_old_files_stay(options, tmp_path):
    command = fake_command({(0, 1): "kill once without a checkpoint"})
    assert tune(options(trials=(1,)), command=command, facts=FACTS) == 0
    first = summary(tmp_path)
    assert not first["resumed"]
    assert first["supervisor"]["attempts"] == 2
    aside = trial_folder(tmp_path).with_name("void_1_trial_1")
    assert json.loads((aside / "trial.json").read_text())["status"] == "preempted"


def test_retries_end(options, tmp_path):
    assert tune(options(trials=(1, 2), retries=2), command=fake_command({(0, 1): "kill"}), facts=FACTS) == 1
    first = summary(tmp_path)
    assert (first["status"], first["void"], first["supervisor"]["attempts"]) == ("preempted", True, 3)
    assert summary(tmp_path, trial=2)["status"] == "reached"


def test_out_of_memory_is_told_from_a_kill_by_the_kernels_counter(options, tmp_path, monkeypatch):
    counts = iter(range(1000))
    monkeypatch.setattr(supervise, "oom_kills", lambda: (next(counts),))
    assert tune(options(trials=(1,)), command=fake_command({(0, 1): "kill"}), facts=FACTS) == 0
    first = summary(tmp_path)
    assert (first["status"], first["void"]) == ("out_of_memory", False)


def test_void_trials_run_again_next_time(options, tmp_path):
    tune(options(trials=(1,)), command=fake_command({(0, 1): "void"}), facts=FACTS)
    tune(options(trials=(1,)), command=fake_command({(0, 1): "void"}), facts=FACTS)
    assert tune(options(trials=(1,)), command=fake_command({}), facts=FACTS) == 0
    folder = trial_folder(tmp_path)
    for number in (1, 2):
        assert json.loads((folder.with_name(f"void_{number}_trial_1") / "trial.json").read_text())["void"]
    assert summary(tmp_path)["supervisor"]["attempts"] == 3


def test_a_command_that_is_refused_is_not_tried_for_every_trial(options, tmp_path, capsys):
    started = []
    refuse = fake_command({(0, n): "refuse" for n in (1, 2, 3)})

    def command(trial, ranks):
        started.append(trial.label)
        return refuse(trial, ranks)

    assert tune(options(), command=command, facts=FACTS) == 1
    assert started == ["digits, study 0, trial 1"]
    shown = capsys.readouterr().out
    assert "no data here" in shown
    assert "3 trials have no result" in shown
    assert not (trial_folder(tmp_path) / "trial.json").exists()


def test_processes_that_a_trial_leaves_behind_are_ended(options):
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    assert tune(options(trials=(1,)), command=fake_command({(0, 1): "child"}), facts=FACTS) == 0
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def test_changed_code_stops_the_benchmark(options, capsys):
    facts = SubmissionFacts(name="fake", digest="d2", points=FACTS.points)
    assert tune(options(), command=fake_command({}), facts=facts) == 1
    assert "code has changed" in capsys.readouterr().out
    with pytest.raises(UsageError, match="was run with other submitted code"):
        make_plan(options(), facts)


# ---------------------------------------------------------------- side by side


def test_jobs_run_side_by_side_on_their_own_processors_and_devices(options, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert tune(options(device="auto", studies=(0, 1)), command=fake_command({}), facts=FACTS) == 0
    used = [json.loads(path.read_text()) for path in tmp_path.rglob("trial.json")]
    assert {(trial["device"], tuple(trial["processors"])) for trial in used} == {("4", (0,)), ("7", (1,))}


def test_more_jobs_than_devices(options, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UsageError, match="2 x 2 ranks do not fit on 2 devices"):
        tune(options(device="cuda", jobs=2, ranks=2), command=fake_command({}), facts=FACTS)


def test_compiled_code_is_not_shared_where_compilation_is_charged(options, tmp_path):
    def caches(workload):
        return [
            json.loads(path.read_text())["compiler_caches"] for path in tmp_path.rglob(f"{workload}_*/*/trial.json")
        ]

    tune(options(trials=(1, 2)), command=fake_command({}), facts=FACTS)
    assert caches("digits") == [[None, None]] * 2
    charged = options(version="v0.6", workloads=("fastmri",), name="charged", trials=(1, 2), ranks=1)
    facts = SubmissionFacts(name="charged", digest="d1", points=FACTS.points)
    tune(charged, command=fake_command({}), facts=facts)
    first, second = caches("fastmri")
    assert len({*first, *second}) == 4
    assert not any(Path(folder).exists() for folder in (*first, *second))


# ---------------------------------------------------------------- stopping and killing the supervisor


SUPERVISOR = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_tune as t
modes = {modes!r}
options = t.TuneOptions(submission="fake", out=Path({out!r}), workloads=("digits",), studies=(0,), probe_steps=0, device="cpu")
sys.exit(t.tune(options, command=t.fake_command(modes), facts=t.FACTS))
"""


@pytest.fixture
def supervisor(tmp_path):
    """Starts a supervisor of its own process, and waits until its first trial trains."""
    started = []

    def start(modes):
        code = SUPERVISOR.format(tests=str(Path(__file__).parent), modes=modes, out=str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        wait_for(lambda: (beat := read_heartbeat(trial_folder(tmp_path) / "heartbeat")) and beat[1] is Phase.TRAINING)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_lets_trials_save_their_state(options, tmp_path, supervisor, number):
    process = supervisor({(0, 1): "until stopped"})
    process.send_signal(number)
    shown, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "2 not run, 1 preempted (void)" in shown
    assert summary(tmp_path)["status"] == "preempted"
    plan = make_plan(options(), FACTS)
    assert [trial.state for trial in plan.trials] == [State.RESUMABLE, State.MISSING, State.MISSING]
    assert tune(options(), command=fake_command({}), facts=FACTS) == 0
    assert summary(tmp_path)["resumed"]


def test_a_failure_after_the_request_to_stop_is_no_failure_of_the_submission(tmp_path, supervisor):
    process = supervisor({(0, 1): "fails when stopped"})
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    first = summary(tmp_path)
    assert (first["status"], first["void"]) == ("preempted", True)
    assert "Stopped on request while in phase training" in first["error"]["message"]


def test_a_second_request_kills(tmp_path, supervisor):
    process = supervisor({(0, 1): "hang training"})
    process.send_signal(signal.SIGINT)
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert summary(tmp_path)["status"] == "preempted"


def test_a_killed_supervisor_takes_its_trials_down_and_the_next_one_goes_on(options, tmp_path, supervisor):
    process = supervisor({(0, 1): "until stopped"})
    process.kill()
    process.wait()
    assert tune(options(), command=fake_command({}), facts=FACTS) == 0  # waits until the trial has saved its state
    first = summary(tmp_path)
    assert first["resumed"]
    assert first["status"] == "reached"
    attempts = read_attempts(trial_folder(tmp_path))
    assert "ended" not in attempts[0]
    assert len(attempts) == 2


def test_a_deaf_trial_of_a_killed_supervisor_is_killed(options, tmp_path, supervisor, monkeypatch):
    process = supervisor({(0, 1): "hang training"})
    process.kill()
    process.wait()
    monkeypatch.setattr(tune_module, "STOP_SECONDS", 1.0)
    assert tune(options(), command=fake_command({}), facts=FACTS) == 0
    assert summary(tmp_path)["status"] == "reached"
    aside = json.loads((trial_folder(tmp_path).with_name("void_1_trial_1") / "trial.json").read_text())
    assert (aside["status"], aside["error"]["phase"]) == ("preempted", "training")


def test_two_supervisors_do_not_share_a_directory(options, supervisor):
    supervisor({(0, 1): "until stopped"})
    with pytest.raises(UsageError, match="in use by another `algoperf tune`"):
        tune(options(), command=fake_command({}), facts=FACTS)


def test_a_trial_that_somebody_runs_by_hand_is_left_alone(options, tmp_path):
    command = fake_command({(0, 1): "until stopped"})
    (trial,) = make_plan(options(trials=(1,)), FACTS).trials
    process = subprocess.Popen(command(trial, 1))
    try:
        wait_for(lambda: (trial.directory / "trial.json").exists())
        with pytest.raises(UsageError, match="study 0, trial 1 is running in another process"):
            tune(options(), command=fake_command({}), facts=FACTS)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


# ---------------------------------------------------------------- the plan


def test_plan_counts_what_is_there(options, tmp_path):
    tune(options(trials=(1, 2, 3)), command=fake_command({(0, 2): "void", (0, 3): "miss"}), facts=FACTS)
    plan = make_plan(options(studies=(0, 1)), FACTS)
    states = [trial.state for trial in plan.trials]
    assert states == [State.DONE, State.VOID, State.DONE, State.MISSING, State.MISSING, State.MISSING]
    assert len(plan.to_run) == 4


def test_studies_come_one_after_the_other(options):
    plan = make_plan(options(workloads=("mnist", "digits"), studies=(), trials=(1,)), FACTS)
    order = [(trial.options.study, trial.options.workload) for trial in plan.trials]
    assert order == [(study, workload) for study in range(3) for workload in ("mnist", "digits")]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"workloads": ()}, "Name some, as in --workloads"),
        ({"workloads": ("digit",)}, "Unknown workload of version local 'digit'"),
        ({"trials": (4,)}, "--trials 4: a study has only 3 trials"),
    ],
)
def test_what_cannot_be_planned(options, others, message):
    with pytest.raises(UsageError, match=message):
        make_plan(options(**others), FACTS)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"seed": 5}, "holds trials of run seed .*, not 5"),
        ({"ruleset": Ruleset.SELF}, "was run with other ruleset"),
    ],
)
def test_what_does_not_belong_together(options, others, message):
    tune(options(trials=(1,), seed=4), command=fake_command({}), facts=FACTS)
    with pytest.raises(UsageError, match=message):
        make_plan(options(**{"seed": 4, **others}), FACTS)
    other_points = SubmissionFacts(name="fake", digest="d1", points={0: [{"lr": 3.0}]})
    with pytest.raises(UsageError, match="was run with other hyperparameters"):
        make_plan(options(), other_points)


@pytest.mark.parametrize(
    "others",
    [
        {"ranks": 0},
        {"jobs": 0},
        {"retries": -1},
        {"probe_steps": -1},
        {"hang_timeout": 0.0},
        {"hang_timeout": float("nan")},
        {"studies": (-1,)},
        {"trials": (0,)},
    ],
)
def test_options_out_of_range(options, others):
    with pytest.raises(UsageError, match=f"--{next(iter(others)).replace('_', '-')}"):
        options(**others)
