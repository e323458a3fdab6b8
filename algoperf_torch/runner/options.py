"""What a user can say about a trial; the field docstrings are the help of `python -m algoperf_torch.run`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.runner.record import read_json
from algoperf_torch.spec import ModelScale, Ruleset
from algoperf_torch.versions import DEFAULT_VERSION, BenchmarkVersion, load_version


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """What all trials of a benchmark have in common."""

    submission: str
    """A registered name (nadamw), an import path (torch.optim:AdamW), a file (my_lion.py:Lion), or the folder of an
    AlgoPerf submission."""
    out: Path = Path("runs")
    """Directory of all runs; the trial gets <out>/<submission>/study_<j>/<workload>_pytorch/trial_<i>."""
    name: str | None = None
    """Name of the submission in the logs, if not the one that follows from --submission."""
    data_dir: Path | None = None
    """Directory of the prepared data; workloads with embedded data need none."""
    version: str = DEFAULT_VERSION
    """Benchmark version: v0.5, v0.6, v1.0, mini, local, or the path of a TOML file."""
    ruleset: Annotated[Ruleset, tyro.conf.EnumChoicesFromValues] = Ruleset.EXTERNAL
    """Tuning ruleset: external (hyperparameters from a search space) or self (none)."""
    hparams: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Hyperparameters, for example lr=1e-3 weight_decay=0.1; takes the place of a search space."""
    search_space: Path | None = None
    """Search space in the AlgoPerf JSON grammar; default: the one that comes with the submission."""
    schedule: str | None = None
    """Learning-rate schedule for a plain optimizer: constant, cosine, linear, trapezoidal."""
    seed: int | None = None
    """Seed of the benchmark run; every trial derives its own from it. Default: drawn by the operating system, recorded."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    budget: str | None = None
    """Budget instead of the version's (version local only): 600s, 2000steps, or 1.5x:RUNS for a multiple of the time to
    target of the runs in a directory."""
    eval_period: float | None = None
    """Seconds between evaluations instead of the version's (version local only)."""
    max_steps: int | None = None
    """Ends the trial after so many steps, with a last evaluation."""
    micro_batch: int | None = None
    """Examples per rank in one pass: the same global batch on a small device."""
    model_scale: ModelScale | None = None
    """`test` shrinks the model but keeps every code path, `mini` to what learns on two CPU cores. Default: the version's,
    which is the only one that is ranked."""
    compile: bool = True
    """Compile model and loss with torch.compile (full graph), unless the version compiles nothing."""
    kernels: Literal["default", "fused", "reference"] = "default"
    """On CUDA devices: `default` updates parameters by the package's kernels and takes those of data and model paths that
    were measured to win, `fused` takes all of them, `reference` none."""
    deterministic: bool = False
    """Deterministic algorithms: bitwise repeatable for a seed, number of ranks and number of threads."""
    threads: int | None = None
    """CPU threads per rank; default: the cores divided by the ranks of this machine."""
    clock: str = "real"
    """`real`, or `steps:SECONDS` to charge a fixed time per step (version local only)."""
    checkpoint: bool = True
    """Write a checkpoint after every evaluation and on SIGTERM."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    wandb: bool = False
    """Also log to Weights & Biases (offline unless it is configured)."""

    def __post_init__(self) -> None:
        if self.hparams and self.search_space:
            raise UsageError("--hparams and --search-space exclude each other: a point or a space, not both.")
        if self.ruleset is Ruleset.SELF and (self.hparams or self.search_space):
            raise UsageError("--ruleset self has no hyperparameters: leave out --hparams and --search-space.")
        for name in ("max_steps", "micro_batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1.")
        if self.eval_period is not None and not 0 < self.eval_period < float("inf"):
            raise UsageError(f"--eval-period {self.eval_period}: must be a positive number of seconds.")
        if self.name is not None and not re.fullmatch(r"[\w.+=-]+", self.name):
            raise UsageError(f"--name {self.name!r}: use letters, digits, and . _ + = - only; it names a directory.")
        if self.version != "local" and not self.version.endswith(".toml"):
            version = load_version(self.version)
            fixed = {**_LOCAL_ONLY, "model_scale": version.model_scale}
            for name, value in fixed.items():
                if getattr(self, name) not in (None, value):
                    flag = f"--{name.replace('_', '-')}"
                    raise UsageError(
                        f"{flag} changes the rules and needs --version local; version {self.version} fixes them."
                    )


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrialOptions):
    """Trains one trial: one workload, one submission, one hyperparameter point."""

    workload: str
    """Name of the workload; `algoperf workloads` lists them."""
    study: int = 0
    """Study number, from 0."""
    trial: int = 1
    """Trial number in the study, from 1; picks the point of the search space."""
    resume: bool = True
    """Go on from the checkpoint in the trial's directory, if there is one."""
    overwrite: bool = False
    """Delete what the trial's directory holds."""
    supervised: bool = False
    """Set by `algoperf tune`, which watches the trial from outside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study < 0:
            raise UsageError(f"--study {self.study}: studies are numbered from 0.")
        if self.trial < 1:
            raise UsageError(f"--trial {self.trial}: trials are numbered from 1.")


_LOCAL_ONLY = {"budget": None, "eval_period": None, "clock": "real", "micro_batch": None}


def settled(options: RunOptions, version: BenchmarkVersion) -> RunOptions:
    """The options with what the version decides: the scale of the model where none is chosen, and whether to compile."""
    return replace(
        options,
        model_scale=options.model_scale or version.model_scale,
        compile=options.compile and version.protocol.compile_policy != "off",
    )


@dataclass(frozen=True)
class Budget:
    """How long a trial may take: whichever comes first."""

    seconds: float
    steps: int | None = None


_BUDGET = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?P<unit>s|steps|x:(?P<path>.+))")


def parse_budget(text: str, reference_seconds: Callable[[Path], float]) -> Budget:
    """`600s`, `2000steps`, or `1.5x:RUNS`, where `reference_seconds(RUNS)` gives the time to target of those runs.

    Raises `UsageError` for anything else.
    """
    match = _BUDGET.fullmatch(text.strip())
    number = float(match["number"]) if match else 0.0
    if match is None or not 0.0 < number < float("inf"):
        raise UsageError(f"--budget {text!r} is not a budget. Write 600s, 2000steps, or 1.5x:runs/nadamw.")
    if match["unit"] == "s":
        return Budget(number)
    if match["unit"] == "steps":
        if number != int(number):
            raise UsageError(f"--budget {text!r}: a number of steps is whole.")
        return Budget(float("inf"), int(number))
    return Budget(number * reference_seconds(Path(match["path"])))


def budget_of(options: RunOptions, version: BenchmarkVersion) -> Budget:
    """Submission seconds and steps after which the trial ends."""
    budget = Budget(version.budget_seconds(options.workload, options.ruleset))
    if options.budget is not None:
        budget = parse_budget(options.budget, lambda runs: reference_seconds(runs, options.workload))
    limits = [budget.steps, version.step_limit(options.workload, options.ruleset), options.max_steps]
    return Budget(budget.seconds, min((limit for limit in limits if limit is not None), default=None))


def reference_seconds(runs: Path, workload: str) -> float:
    """Median time to target of the trials of one workload in a directory of runs. Raises `UsageError` if there is none."""
    times = []
    for path in sorted(runs.glob(f"**/study_*/{workload}_pytorch/trial_*/trial.json")):
        try:
            seconds = read_json(path).get("result", {}).get("validation_seconds")
        except LogError as error:
            raise UsageError(f"--budget: {error}") from error
        if seconds is not None:
            times.append(float(seconds))
    if not times:
        raise UsageError(
            f"--budget: no trial of {workload} in {runs} reached its target, so there is no time to scale."
        )
    return statistics.median(times)
