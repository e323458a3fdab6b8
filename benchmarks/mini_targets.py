"""Sets the target of a workload of the mini benchmark by the paper's procedure (arXiv:2306.07179, section 4.3).

Run: `python benchmarks/mini_targets.py --workload ogbg --data-dir data/mini --steps 300 --out runs/targets`. Each algorithm is
tuned over the points of its own search space, `--steps` steps a trial with ten evaluations; the best point of all is repeated
with other seeds; `algoperf targets` sets the target to the median of what the repeats reach, and the step hint to 4/3 of the
steps. It is written to `<out>/<workload>/targets.toml`, the evidence in its comments.

The trials run one after the other under `algoperf tune` and an injected clock of one second a step: the machine's speed has no
say in the targets, and the budget and the period in that file are numbers of steps. The same command goes on where it was
stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from algoperf_torch.cli import main as algoperf
from algoperf_torch.scoring.logs import read_logs
from algoperf_torch.scoring.output import best_row
from algoperf_torch.scoring.targets import TargetSetting, TargetsOptions, set_targets
from algoperf_torch.scoring.targets import main as write_targets
from algoperf_torch.spec import Target, higher_is_better
from algoperf_torch.versions import load_version


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tunes, repeats the best point, and writes the terms."""

    workload: str
    """Name of the workload."""
    steps: int
    """Steps of every trial."""
    out: Path
    """Directory of the runs; the workload gets a folder in it."""
    data_dir: Path | None = None
    """Directory of the prepared data."""
    algorithms: tuple[str, ...] = ("adamw", "nadamw", "nesterov")
    """Which algorithms are tuned."""
    repeats: int = 5
    """Runs of the best point with other seeds."""
    evaluations: int = 10
    """Evaluations of a trial."""
    model_scale: Literal["full", "test", "mini"] = "mini"
    """Model scale of all trials."""
    seed: int = 1
    """Seed of the tuning runs; the repeats have the next."""


def tune(options: Options, version: Path, out: Path, algorithm: str, seed: int, *more: str) -> None:
    """All trials of one algorithm that are still missing; ends the program where they do not end well."""
    arguments = [
        "tune", "--workloads", options.workload, "--submission", algorithm, "--version", str(version),
        "--model-scale", options.model_scale, "--no-compile", "--clock", "steps:1", "--max-steps", str(options.steps),
        "--eval-period", str(options.steps // options.evaluations), "--threads", "1", "--device", "cpu",
        "--seed", str(seed), "--out", str(out), *more,
    ]  # fmt: skip
    if options.data_dir is not None:
        arguments += ["--data-dir", str(options.data_dir)]
    status = algoperf(arguments)
    if status:
        sys.exit(status)


def show(runs: Sequence[Path], setting: TargetSetting, console: Console) -> None:
    """Every trial's best validation value, and the first step at which it met the target."""
    target = Target(setting.metric, setting.validation_target)
    table = Table("runs", "algorithm", "trial", "hyperparameters", f"best {setting.metric}", "target met at step")
    for trial in read_logs(runs, all_columns=True).trials:
        if trial.evaluations is None:
            continue
        values, steps = trial.evaluations.get(f"validation/{setting.metric}"), trial.evaluations.get("global_step")
        row = best_row(values, higher_is_better=target.higher_is_better)
        met = [int(step) for step, value in zip(steps, values, strict=True) if target.reached(float(value))]
        point = json.loads((trial.path / "hparams.json").read_text(encoding="utf-8"))
        described = ", ".join(f"{name} {value:.3g}" for name, value in point.items() if isinstance(value, float))
        best = "none" if row is None else f"{values[row]:.5g}"
        place = f"{trial.study}/{trial.number}"
        table.add_row(
            trial.path.parents[3].name, trial.submission, place, described, best, str(met[0]) if met else "never"
        )
    console.print(table)


def main(options: Options) -> int:
    folder = options.out / options.workload
    folder.mkdir(parents=True, exist_ok=True)
    metric = load_version("local").terms(options.workload).metric
    unreachable = 1e9 if higher_is_better(metric) else -1e9
    version = folder / "tuning.toml"  # a trial that met a target would end there
    version.write_text(
        f'inherits = "local"\nname = "tuning"\n[workloads.{options.workload}]\n'
        f"validation_target = {unreachable}\nbudget_seconds = 1e9\n"
    )
    tuning, repeats = folder / "tuning", folder / "repeats"
    for algorithm in options.algorithms:
        tune(options, version, tuning, algorithm, options.seed, "--studies", "0")
    (best,) = set_targets(TargetsOptions(runs=(tuning,), base=str(version)))
    space = folder / "best.json"
    space.write_text(json.dumps([json.loads(best.point)]))
    studies = map(str, range(options.repeats))
    tune(
        options, version, repeats, best.algorithm, options.seed + 1, "--search-space", str(space), "--studies", *studies
    )
    terms = TargetsOptions(runs=(tuning,), repeats=(repeats,), base="local", out=folder / "targets.toml")
    (setting,) = set_targets(terms)
    show((tuning, repeats), setting, Console(width=140, highlight=False))
    return write_targets(terms)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
