"""A trial that trains nothing and ends in a chosen way; started by the tests of the supervisor.

`fake_trial.py MODE CONTEXT`: CONTEXT is a JSON object with `directory` and the entries of `trial.json` to write.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from algoperf_torch.runner.record import Heartbeat, write_json
from algoperf_torch.runner.status import Phase

mode, context = sys.argv[1], json.loads(sys.argv[2])
directory = Path(context.pop("directory"))
checkpoint = directory / "checkpoint_000000003.pt"
resumed = checkpoint.exists()

if mode == "refuse":
    sys.exit(print("algoperf: no data here", file=sys.stderr) or 2)
stopped: list[int] = []
if mode in ("until stopped", "fails when stopped"):
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
directory.mkdir(parents=True, exist_ok=True)
lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
heartbeat = Heartbeat(directory / "heartbeat")
process = psutil.Process()
summary = {
    **context,
    "status": "running",
    "void": True,
    "clock": "real",
    "process": {"host": os.uname().nodename, "pid": process.pid, "started": process.create_time(), "world_size": 1},
    "started": time.time(),
    "resumed": resumed,
    "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "processors": sorted(os.sched_getaffinity(0)),
    "compiler_caches": [os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")],
}
write_json(directory / "trial.json", summary)


def end(status: str, *, void: bool, code: int = 0) -> None:
    result = {"submission_seconds": 0.1, "steps": 3, "validation_seconds": 0.1, "validation_step": 3}
    write_json(directory / "trial.json", {**summary, "status": status, "void": void, "result": result})
    heartbeat.enter(Phase.FINISHED, 3)
    os._exit(code)


def enter(phase: Phase, seconds: float = 0.0) -> None:
    heartbeat.enter(phase, 3)
    time.sleep(seconds)


if mode.startswith("exit "):  # exit PHASE
    enter(Phase[mode.split()[1].upper()], 0.3)
    os._exit(0)
if mode.startswith("hang "):  # hang PHASE: deaf to requests
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    enter(Phase[mode.split()[1].upper()], 3600)
if mode == "slow evaluation":
    heartbeat.enter(Phase.EVALUATION, 3)
    for _ in range(30):
        time.sleep(0.2)
        heartbeat.beat(3)
enter(Phase.TRAINING, 0.1)
if mode == "scribble":
    (directory / "trial.json").write_text("{")
    os._exit(0)
if mode == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
if mode == "kill" or (mode in ("kill once", "kill once without a checkpoint") and context["trial"] and not resumed):
    attempts = json.loads(directory.with_name(f"supervisor_{directory.name}.json").read_text())["attempts"]
    if mode != "kill once without a checkpoint":
        checkpoint.write_text("state")
    if mode != "kill once without a checkpoint" or len(attempts) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
if mode == "until stopped" and not resumed:
    while not stopped:
        time.sleep(0.05)
    enter(Phase.CHECKPOINT, 0.5)
    checkpoint.write_text("state")
    end("preempted", void=True, code=75)
if mode == "fails when stopped" and not resumed:
    checkpoint.write_text("state")
    while not stopped:
        time.sleep(0.05)
    summary["error"] = {"type": "BrokenProcessPool", "message": "a compiler is gone", "phase": "training"}
    end("submission_error", void=False, code=3)
if mode == "void":
    end("harness_error", void=True, code=1)
if mode == "miss":
    end("submission_error", void=False, code=3)
if mode == "child":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
enter(Phase.EVALUATION, 0.1)
checkpoint.unlink(missing_ok=True)
end("reached", void=False)
