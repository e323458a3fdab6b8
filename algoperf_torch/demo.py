"""`make demo`: three algorithms race on the digits, through torchrun with two ranks, and are ranked.

The digits come with scikit-learn, so nothing is downloaded. Every trial is an ordinary one: the same command, clock,
evaluation and logs as a full run, each at the point of its search space that did best on the digits. Takes no options
but the directory (default: runs/demo), which is emptied first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

POINTS = {"nadamw": 3, "nesterov": 5, "schedule_free_adamw": 2}  # submission -> number of its trial
NUM_RANKS = 2
SEED = 2306_07179  # arXiv number of the benchmark's paper


def command(submission: str, out: Path) -> list[str]:
    """One trial of a submission, as a user would type it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={NUM_RANKS}"]
    trial = ["--workload", "digits", "--submission", submission, "--trial", str(POINTS[submission])]
    return [*launcher, "-m", "algoperf_torch.run", *trial, "--out", str(out), "--seed", str(SEED)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the race; returns 0 when all three trials ended in order."""
    words = sys.argv[1:] if arguments is None else arguments
    out = Path(words[0]) if words else Path("runs/demo")
    console = Console(highlight=False, soft_wrap=True)
    if out.exists():
        shutil.rmtree(out)
    started = time.perf_counter()
    console.print(f"Three algorithms, one workload: digits on the CPU, {NUM_RANKS} ranks each, one after the other.\n")
    failed = []
    for submission in POINTS:
        words = command(submission, out)
        console.print(f"[dim]$ torchrun {' '.join(words[3:])}[/]")
        if subprocess.run(words, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
            failed.append(submission)
        console.print()
    from algoperf_torch.scoring.score import ScoreOptions
    from algoperf_torch.scoring.score import main as score

    status = score(ScoreOptions(runs=(out,)))
    console.print(f"\nDone in {time.perf_counter() - started:.0f} s. Logs: {out}/<submission>/study_0/digits_pytorch")
    console.print(f"Next: algoperf score {out} · algoperf new-submission my_first · algoperf workloads")
    if failed:
        console.print(f"[red]Failed:[/] {', '.join(failed)}")
    return 1 if failed else status


if __name__ == "__main__":
    sys.exit(main())
