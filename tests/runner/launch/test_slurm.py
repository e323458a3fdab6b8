"""SLURM: what is submitted, what a task does, how trials stand. Fast with programs that play SLURM; slow with a real one."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from algoperf_torch.errors import UsageError
from algoperf_torch.runner import standing
from algoperf_torch.runner.launch import slurm
from algoperf_torch.runner.plan import SubmissionFacts, make_plan
from algoperf_torch.runner.record import read_heartbeat, read_rows
from algoperf_torch.runner.status import Phase
from algoperf_torch.runner.supervise import read_attempts
from algoperf_torch.runner.tune import TuneOptions, plan_main, tune

ROOT = Path(__file__).parents[3]
FAKE_TRIAL = ROOT / "tests" / "data" / "fake_trial.py"
FACTS = SubmissionFacts(name="fake", digest="d1", points={0: [{"lr": 0.1 * n} for n in (1, 2, 3)]})


def fake_command(trial, ranks, mode="reached"):
    options = trial.options
    context = {
        "directory": str(trial.directory.resolve()),
        "version": options.version,
        "ruleset": options.ruleset.value,
        "workload": options.workload,
        "study": options.study,
        "trial": options.trial,
        "submission": {"name": "fake", "digest": "d1"},
        "hyperparameters": dict(trial.point),
        "seeds": {"run": options.seed},
    }
    return [sys.executable, str(FAKE_TRIAL), mode, json.dumps(context)]


class FakeSlurm:
    """Programs on PATH that play SLURM: `queue` is what squeue prints, `calls` what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.queue = folder / "queue"
        self.queue.write_text("")
        self.calls = folder / "calls"
        self.program("squeue", f"cat {self.queue}")
        self.program("srun", "exit 1")
        self.program(
            "sbatch", f'cp "$1" {folder}/submitted_$(ls {folder} | grep -c submitted_); echo Submitted batch job 7'
        )
        self.program("scontrol", f"echo $@ >> {self.calls}; echo JobId=7 JobState=FAILED ExitCode=2:0")

    def program(self, name: str, line: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    @property
    def submitted(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("submitted_*"))]

    def enqueue(self, out: Path, *states: str) -> None:
        """Shows the tasks of the array of `out` in the queue."""
        (record,) = (out / "fake" / ".slurm").iterdir()
        lines = [
            f"7|{index}|{state}|Priority|node1|algoperf-{record.name}\n" for index, state in enumerate(states) if state
        ]
        self.queue.write_text("".join(lines))


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    return fake


@pytest.fixture
def options(tmp_path):
    def make(**others):
        defaults = {"workloads": ("digits",), "studies": (0,), "launcher": "slurm", "device": "cpu", "seed": 1}
        return TuneOptions(submission="fake", out=tmp_path / "runs", **{**defaults, **others})

    return make


def trial_folder(options, trial=1):
    return options.out / "fake" / "study_0" / "digits_pytorch" / f"trial_{trial}"


def tune_fake(options):
    return tune(options, command=fake_command, facts=FACTS)


# ---------------------------------------------------------------- submitting


def test_missing_trials_are_submitted_as_an_array(options, fake_slurm, capsys):
    given = options(jobs=2, slurm=("partition=gpu", "cpus-per-task=4", "time=1:30:00", "exclusive"))
    assert tune_fake(given) == 0
    (script,) = fake_slurm.submitted
    lines = script.splitlines()
    (record,) = (given.out / "fake" / ".slurm").iterdir()
    for line in (
        "#SBATCH --array=0-2%2",
        "#SBATCH --partition=gpu",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --time=90",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        f"#SBATCH --signal=USR2@{slurm.WARNING_SECONDS}",
        f"#SBATCH --job-name=algoperf-{record.name}",
    ):
        assert line in lines
    assert "srun --unbuffered" in script
    assert "--cpus-per-task=4 " in script.partition("srun")[2]
    assert "digits: 3 trials submitted as job 7, 1 h 30 min each" in capsys.readouterr().out
    assert trial_folder(given).with_name("slurm_trial_2.err").readlink().name == "7_1_0_log.err"


def test_nothing_is_submitted_twice(options, fake_slurm, capsys):
    tune_fake(options())
    fake_slurm.enqueue(options().out, "PENDING", "RUNNING", "COMPLETING")
    assert tune_fake(options()) == 0
    assert len(fake_slurm.submitted) == 1
    assert "3 trials (3 in the queue)" in capsys.readouterr().out


def test_a_trial_that_left_the_queue_without_a_result_is_submitted_again(options, fake_slurm):
    tune_fake(options())
    fake_slurm.enqueue(options().out, "PENDING", "", "PENDING")
    tune_fake(options())
    assert "#SBATCH --array" not in fake_slurm.submitted[1]  # one trial is no array


def test_killed_after_sbatch_and_before_the_job_was_noted(options, fake_slurm):
    tune_fake(options())
    (path,) = (options().out / "fake" / ".slurm").glob("*/trials.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "jobs": []}))
    fake_slurm.enqueue(options().out, "PENDING", "PENDING", "PENDING")
    tune_fake(options())
    assert len(fake_slurm.submitted) == 1


def test_the_local_launcher_leaves_queued_trials_alone(options, fake_slurm):
    tune_fake(options())
    fake_slurm.enqueue(options().out, "PENDING", "PENDING", "PENDING")
    with pytest.raises(UsageError, match="trial 1 is in SLURM's queue as job 7_0"):
        tune_fake(options(launcher="local", probe_steps=0))


def test_the_plan_shows_what_is_in_the_queue(options, fake_slurm, capsys, monkeypatch):
    monkeypatch.setattr("algoperf_torch.runner.tune.facts_of", lambda _: FACTS)
    tune_fake(options())
    fake_slurm.enqueue(options().out, "PENDING", "", "RUNNING")
    capsys.readouterr()
    assert plan_main(options()) == 0
    assert "3 trials (1 missing, 2 in the queue)" in capsys.readouterr().out
    assert len(fake_slurm.submitted) == 1


def test_waiting_ends_with_the_queue(options, fake_slurm, capsys, monkeypatch):
    monkeypatch.setattr("algoperf_torch.runner.tune.SLURM_POLL_SECONDS", 0.01)
    assert tune_fake(options(wait=True)) == 1
    shown = capsys.readouterr().out
    assert "3 not run" in shown
    assert "3 trials have no result yet" in shown


@pytest.mark.parametrize(
    ("program", "line", "message"),
    [
        ("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; "
         "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; exit 1",
         "SLURM refused the trials of digits: Batch job submission failed: Invalid partition name specified$"),
        ("sbatch", "echo who knows", "SLURM refused the trials of digits: .*who knows"),
        ("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
         "squeue failed: .*Unable to contact slurm controller"),
    ],
)  # fmt: skip
def test_what_slurm_refuses_is_told_in_one_line(options, fake_slurm, program, line, message, capsys):
    if program == "squeue":
        tune_fake(options())
    fake_slurm.program(program, line)
    with pytest.raises(UsageError, match=message) as caught:
        tune_fake(options())
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_no_slurm_here(options, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch on PATH"):
        tune_fake(options())


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("2:00:00", 120), ("1-0", 1440), ("1-12:30", 2190), ("0-00:00:01", 1)],
)
def test_time_limits(text, minutes):
    assert slurm.parse_time(text) == minutes


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"slurm": ("time=soon",)}, "--slurm time=soon: write minutes"),
        ({"slurm": ("time=0",)}, "at least a minute"),
        ({"slurm": ("partition=",)}, "write KEY=VALUE"),
        ({"slurm": ("-p gpu",)}, "write KEY=VALUE"),
        ({"slurm": ("output=x",)}, "sets output itself"),
        ({"slurm": ("job_name=x",)}, "sets job-name itself"),
        ({"slurm": ("time=2",), "budget": "600s", "checkpoint": False}, "takes up to 10 min 00 s, and --no-checkpoint"),
        ({"slurm": ("time=3",), "budget": "6000s"}, "--retries allows 3"),
        ({"budget": "200steps"}, "say how long, as in --slurm time=60"),
    ],
)
def test_parameters_that_cannot_be(options, fake_slurm, others, message):
    with pytest.raises(UsageError, match=message):
        tune_fake(options(**others))
    assert not fake_slurm.submitted


def test_slurm_options_go_with_the_launcher(options):
    with pytest.raises(UsageError, match="go with --launcher slurm"):
        options(launcher="local", wait=True)


# ---------------------------------------------------------------- in the task


@pytest.fixture
def task(options, fake_slurm):
    """Starts a task of an array for the first trial in a process of its own."""
    (planned,) = make_plan(options(trials=(1,)), FACTS).trials
    planned.directory.parent.mkdir(parents=True)
    started = []

    def start(mode="reached", **environment):
        fields = {
            "directory": planned.directory.resolve(),
            "command": tuple(fake_command(planned, 1, mode)),
            "hang_timeout": 60.0,
            "keeps_state": True,
            "retries": 2,
            "own_compiler_cache": False,
        }
        code = f"from pathlib import *\nfrom algoperf_torch.runner.launch.slurm import *\nprint(SupervisedTrial(**{fields})())"
        code = code.replace("PosixPath", "Path")
        env = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", **environment}
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def summary(options, trial=1):
    return json.loads((trial_folder(options, trial) / "trial.json").read_text())


def test_a_task_runs_its_trial(options, task):
    shown, _ = (process := task()).communicate(timeout=60)
    assert process.returncode == 0
    assert shown.endswith("reached\n")
    assert summary(options())["supervisor"]["attempts"] == 1
    assert read_attempts(trial_folder(options()))[0]["slurm_job"] == "7_0"
    shown, _ = (again := task()).communicate(timeout=60)
    assert "has its result already" in shown
    assert (again.returncode, summary(options())["supervisor"]["attempts"]) == (0, 1)


def test_a_void_trial_fails_its_task_and_a_killed_one_is_taken_up(options, task):
    assert task("void").wait(timeout=60) == 1
    assert task("kill once").wait(timeout=60) == 0
    assert summary(options())["resumed"]
    assert summary(options())["supervisor"]["attempts"] == 3


@pytest.mark.parametrize(
    ("number", "queue", "restarts", "asked"),
    [
        (signal.SIGTERM, "RUNNING", 0, True),
        (signal.SIGUSR1, "RUNNING", 1, True),
        (signal.SIGUSR2, "RUNNING", 2, False),
        (signal.SIGTERM, "COMPLETING", 0, False),
    ],
)
def test_a_request_to_stop_saves_and_queues_again(options, fake_slurm, task, number, queue, restarts, asked):
    fake_slurm.queue.write_text(queue)
    process = task("until stopped", SLURM_RESTART_COUNT=str(restarts))
    wait_for(lambda: (beat := read_heartbeat(trial_folder(options()) / "heartbeat")) and beat[1] is Phase.TRAINING)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert fake_slurm.calls.exists() == asked
    if asked:
        assert fake_slurm.calls.read_text() == "requeue 7_0\n"
    assert summary(options())["status"] == "preempted"
    assert task().wait(timeout=60) == 0
    assert summary(options())["resumed"]


def wait_for(condition, seconds=60.0, sleep=0.05):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(sleep)
    return value


# ---------------------------------------------------------------- status


def test_status_of_trials_in_the_queue(options, fake_slurm, task, capsys):
    tune_fake(options())
    task().wait(timeout=60)
    fake_slurm.enqueue(options().out, "", "PENDING", "RUNNING")
    capsys.readouterr()
    assert standing.main(standing.StatusOptions((options().out,), json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    facts = [(row["state"], row["job"], row["steps"], row["note"]) for row in found]
    assert facts == [("reached", "7_0", 3, ""), ("pending", "7_1", None, "Priority"), ("running", "7_2", None, "")]
    assert found[2]["host"] == "node1"
    assert standing.main(standing.StatusOptions((options().out,))) == 0
    shown = capsys.readouterr().out
    assert "fake/study_0/digits/trial_2" in shown
    assert "3 trials: 1 pending, 1 reached, 1 running" in shown


def test_status_of_trials_that_went_wrong(options, fake_slurm, task):
    tune_fake(options(trials=(1, 2)))
    assert task("void").wait(timeout=60) == 1
    first, second = standing.standings(options().out)
    assert (first.state, first.void) == ("harness_error", True)
    assert second.state == "no record"
    assert "job 7_1 ended: FAILED, exit status 2" in second.note


def test_status_of_a_trial_whose_processes_are_gone(options, fake_slurm, task):
    process = task("until stopped")
    wait_for(lambda: (beat := read_heartbeat(trial_folder(options()) / "heartbeat")) and beat[1] is Phase.TRAINING)
    (row,) = standing.standings(options().out)
    assert (row.state, row.steps, row.void) == ("running", 3, False)
    content = summary(options())
    process.kill()  # the trial is told to stop
    wait_for(lambda: summary(options())["status"] == "preempted")
    wait_for(lambda: not slurm.is_locked(trial_folder(options())))
    (row,) = standing.standings(options().out)
    assert row.state == "stopped"
    (trial_folder(options()) / "trial.json").write_text(json.dumps({**content, "status": "running"}))
    (row,) = standing.standings(options().out)
    assert row.state == "lost"
    content["process"]["host"] = "another"
    (trial_folder(options()) / "trial.json").write_text(json.dumps({**content, "status": "running"}))
    (row,) = standing.standings(options().out)
    assert row.state == "running"


def test_status_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="No directory"):
        standing.standings(tmp_path / "absent")
    with pytest.raises(UsageError, match="No trial below"):
        standing.standings(tmp_path)


# ---------------------------------------------------------------- a real SLURM of one node

SLOW = """
import time
from pathlib import Path
import torch

class Slow(torch.optim.SGD):
    def step(self, closure=None):
        if Path(__file__).with_name("slowly").exists():
            time.sleep(0.05)
        return super().step(closure)
"""
POINTS = [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.05}]
DRILL = ("--clock", "steps:0.05", "--deterministic", "--eval-period", "2", "--max-steps", "150", "--trials", "1")


@pytest.fixture(scope="module")
def real_slurm(tmp_path_factory):
    """The environment of clients of a SLURM that `.ci/slurm` starts."""
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / ".ci" / "slurm")
    done = subprocess.run([script, "start", str(folder)], capture_output=True, text=True, check=False)
    try:
        if done.returncode == 77:
            pytest.skip(f"no SLURM here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        yield {**clean, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    finally:
        subprocess.run([script, "stop", str(folder)], check=True, capture_output=True)


@pytest.fixture
def algoperf(real_slurm):
    """`algoperf(...)`: runs the command to its end; `algoperf.start(...)` only starts it; `algoperf.ask(...)` asks SLURM."""

    def command(*words):
        return [sys.executable, "-m", "algoperf_torch.cli", *map(str, words)]

    def run(*words, code=0):
        done = subprocess.run(command(*words), env=real_slurm, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    run.start = lambda *words: subprocess.Popen(command(*words), env=real_slurm, stdout=subprocess.DEVNULL)
    run.ask = lambda *words: subprocess.run(words, env=real_slurm, capture_output=True, text=True, check=True).stdout
    return run


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    path.with_suffix(".json").write_text(json.dumps(POINTS))
    return path


def tune_words(out, source, *more):
    words = ["tune", "--submission", f"{source}:Slow", "--out", out, "--workloads", "digits", "--device", "cpu"]
    return [*words, "--seed", "3", "--no-compile", "--threads", "1", "--probe-steps", "0", *more]


ON_SLURM = ("--launcher", "slurm", "--slurm", "time=30")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_trials_arrive_once_though_tune_is_killed(tmp_path, source, algoperf):
    words = [
        *tune_words(out := tmp_path / "runs", source, "--studies", "0", "--max-steps", "60"),
        *ON_SLURM,
    ]
    assert "refused the trials of digits: " in algoperf(*words, "partition=none", code=2)
    records = out / "slow_Slow" / ".slurm"
    shutil.rmtree(records)
    process = algoperf.start(*words, "--wait")
    wait_for(lambda: [path for path in records.glob("*/trials.json") if json.loads(path.read_text())["jobs"]])
    process.kill()
    process.wait()
    states = {row["state"] for row in json.loads(algoperf("status", out, "--json"))}
    assert states <= {"pending", "running"}
    shown = algoperf(*words, "--wait")
    assert "submitted as job" not in shown
    assert "Every trial has a result" in shown
    found = json.loads(algoperf("status", out, "--json"))
    assert [row["state"] for row in found] == [
        "reached" if row["state"] == "reached" else "budget_exhausted" for row in found
    ]
    assert [row["trial"] for row in found] == [1, 2, 3]
    assert len({row["job"] for row in found}) == 3
    for row in found:
        directory = Path(row["directory"])
        (attempt,) = read_attempts(directory)
        assert attempt["slurm_job"] == row["job"]
        assert "digits_pytorch" in directory.with_name(f"slurm_{directory.name}.out").read_text()
        assert directory.with_name(f"slurm_{directory.name}.err").exists()
    assert "3 trials: VALID" in algoperf("audit", out)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_trials_go_on_after_preemption(tmp_path, source, algoperf):
    (slowly := source.with_name("slowly")).touch()
    out = tmp_path / "interrupted"
    algoperf(*tune_words(out, source, "--studies", "0", "1", *DRILL), *ON_SLURM)
    first, second = (out / "slow_Slow" / f"study_{study}" / "digits_pytorch" / "trial_1" for study in (0, 1))

    def trains(directory, attempt):
        beat = read_heartbeat(directory / "heartbeat")
        return len(read_attempts(directory)) == attempt and beat is not None and beat[0] > 40

    wait_for(lambda: trains(first, 1) and trains(second, 1), seconds=120)
    jobs = {row["study"]: row["job"] for row in json.loads(algoperf("status", out, "--json"))}
    algoperf.ask("scontrol", "requeue", jobs[0])
    algoperf.ask("scancel", "--signal=TERM", jobs[1])
    wait_for(lambda: trains(second, 2), seconds=120)
    algoperf.ask("scancel", "--signal=USR2", jobs[1])  # as before the time limit
    slowly.unlink()
    again = [*tune_words(out, source, "--studies", "0", "1", *DRILL), *ON_SLURM, "--wait"]
    assert "Every trial has a result" in algoperf(*again)
    algoperf(*tune_words(tmp_path / "whole", source, "--studies", "1", *DRILL))

    def rows(folder):
        found = read_rows(folder / "slow_Slow" / "study_1" / "digits_pytorch" / "trial_1" / "eval_measurements.csv")
        return [{**row, "preemption_count": ""} for row in found]

    assert rows(out) == rows(tmp_path / "whole")
    assert len(read_attempts(first)) == 2
    assert [attempt["status"] for attempt in read_attempts(second)] == ["preempted", "preempted", "budget_exhausted"]
    assert {attempt["slurm_job"] for attempt in read_attempts(second)} == {jobs[1]}


def test_the_library_leaves_logging_alone():
    """In a fresh process: in this one it is there already."""
    code = """
import logging
from algoperf_torch.runner.launch import slurm
closed = []
handler = logging.NullHandler()
handler.close = lambda: closed.append(True)
slurm._submitit()
print(len(closed), len(logging.getLogger("submitit").handlers))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["0", "0"]
