"""Runs the paper's target-setting procedure (section 4.3) on the digits: tune, repeat the best point, take medians.

Run: `python benchmarks/digits_target.py runs/digits_target`, about six minutes on two quiet cores. Four algorithms at the five
points of their search spaces, 600 steps each, an evaluation every 20 steps; the best point again with 20 other seeds. Then
`algoperf targets` writes the version file `targets.toml` beside the runs. docs/workloads.md says what came out, and why the
target in `versions/local.toml` is lower.
Trials run under an injected clock, so that the machine's speed has no say in the numbers.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

from algoperf_torch.run import main as run
from algoperf_torch.scoring.targets import TargetsOptions, set_targets
from algoperf_torch.scoring.targets import main as write_targets

STEPS = 600
ALGORITHMS = ("adamw", "nadamw", "momentum", "nesterov")
REPEATS = 20
UNREACHABLE = 'inherits = "local"\nname = "tuning"\n[workloads.digits]\nvalidation_target = 2.0\ntest_target = 2.0\n'
SETTINGS = ["--workload", "digits", "--no-compile", "--clock", "steps:0.01", "--eval-period", "0.2", "--threads", "1"]


def trial(out: str, version: str, algorithm: str, *more: str) -> None:
    """One trial, in a process of its own."""
    arguments = [
        *SETTINGS,
        "--version",
        version,
        "--max-steps",
        str(STEPS),
        "--submission",
        algorithm,
        "--out",
        out,
        *more,
    ]
    sys.exit(run(arguments))


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    version = folder / "tuning.toml"
    version.write_text(UNREACHABLE)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["algoperf_torch.runner.execute"])

    def start(*arguments: str) -> None:
        process = context.Process(target=trial, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == 0, arguments

    for algorithm in ALGORITHMS:
        for number in range(1, 6):
            start(str(folder / "tuning"), str(version), algorithm, "--seed", "1", "--trial", str(number))
    options = TargetsOptions(runs=(folder / "tuning",), base=str(version), out=folder / "points.toml")
    (best,) = set_targets(options)
    space = folder / "best.json"
    space.write_text(json.dumps([json.loads(best.point)]))
    for seed in range(REPEATS):
        more = ["--seed", str(100 + seed), "--study", str(seed), "--search-space", str(space)]
        start(str(folder / "repeats"), str(version), best.algorithm, *more)
    repeated = TargetsOptions(
        runs=(folder / "tuning",), repeats=(folder / "repeats",), base="local", out=folder / "targets.toml"
    )
    return write_targets(repeated)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits_target")))
