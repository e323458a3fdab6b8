"""Benchmark versions as data: each TOML file beside this module is one version of the rules.

`load_version("v0.6")` reads a built-in version, `load_version(path)` a user's own file. A file may name a base with
`inherits`; its tables are laid over the base's, and `workloads` of a file that sets `only_own_workloads` replace them.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from algoperf_torch.errors import UnknownNameError, UsageError
from algoperf_torch.spec import Ruleset, Target

VERSION_FILES = Path(__file__).parent
DEFAULT_VERSION = "local"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a trial is run: the loop, the clock, the compiler."""

    prepare_hook: bool  # whether `prepare_for_eval` and `resume_training` are called (not in v0.5)
    budget_check: Literal["every_step", "evaluation"]  # where the official harness tests the budget
    late_evaluation: bool  # whether an evaluation due in the step that exhausts the budget still takes place
    stop_at: Literal["validation", "both"]  # whether a trial goes on to the test target
    end_on_divergence: bool  # whether a metric that is not a number ends the trial
    step_limit_hints: float | None = None  # step limit in multiples of the step hint (times the ruleset's multiplier)
    compile_policy: Literal["fresh", "prewarmed"]  # whether compiling the harness's own graphs is charged
    batch_norm_groups: int  # groups of the global batch that are normalised each by its own statistics
    page_cache: Literal[
        "any", "warm", "cold"
    ]  # state of the operating system's cache of the data files before the clock


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How many trials make a result."""

    studies: int
    external_trials: int  # trials in a study of the external ruleset; the self-tuning ruleset has one
    self_tuning_multiplier: float  # of the budget


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine that an official run must have. `None` accepts anything."""

    device: str | None = None  # the name that the driver reports
    num_devices: int | None = None
    device_memory_gib: float | None = None
    memory_gib: float | None = None
    num_cpus: int | None = None
    driver: str | None = None
    python: str | None = None
    torch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Numerical flags that the harness sets and guards."""

    float32_matmul: Literal["highest", "high", "medium"]
    cudnn_benchmark: bool = True


@dataclass(frozen=True, kw_only=True)
class WorkloadTerms:
    """What a version says of one workload."""

    metric: str
    validation_target: float
    test_target: float | None  # None where there is no test split
    budget_seconds: float  # of the external ruleset
    eval_period_seconds: float
    step_hint: int
    eval_batch_size: int | None = None  # None: the workload's own

    @property
    def validation(self) -> Target:
        return Target(self.metric, self.validation_target)

    @property
    def test(self) -> Target | None:
        return None if self.test_target is None else Target(self.metric, self.test_target)


@dataclass(frozen=True, kw_only=True)
class BenchmarkVersion:
    """One version of the rules. `official` versions refuse to run on other hardware than theirs."""

    name: str
    description: str
    official: bool
    protocol: Protocol
    tuning: Tuning
    hardware: Hardware
    precision: Precision
    base_workloads: tuple[str, ...]  # those that count for the score, in the version's order
    held_out_workloads: tuple[str, ...] = ()
    workloads: dict[str, WorkloadTerms] = field(default_factory=dict)

    def terms(self, workload: str) -> WorkloadTerms:
        if workload not in self.workloads:
            raise UnknownNameError(f"workload of version {self.name}", workload, self.workloads)
        return self.workloads[workload]

    def budget_seconds(self, workload: str, ruleset: Ruleset) -> float:
        return self.terms(workload).budget_seconds * self.budget_multiplier(ruleset)

    def budget_multiplier(self, ruleset: Ruleset) -> float:
        return self.tuning.self_tuning_multiplier if ruleset is Ruleset.SELF else 1.0

    def step_limit(self, workload: str, ruleset: Ruleset) -> int | None:
        hints = self.protocol.step_limit_hints
        return None if hints is None else int(hints * self.terms(workload).step_hint * self.budget_multiplier(ruleset))

    def num_trials(self, ruleset: Ruleset) -> int:
        return 1 if ruleset is Ruleset.SELF else self.tuning.external_trials


def version_names() -> list[str]:
    """Names of the built-in versions."""
    return sorted(path.stem.replace("_", ".") for path in VERSION_FILES.glob("*.toml"))


def load_version(name: str | Path) -> BenchmarkVersion:
    """A built-in version by its name, or a user's own by the path of its TOML file.

    Raises `UnknownNameError` for a name that is neither, `UsageError` for a file that cannot be read as a version.
    """
    text = str(name)
    return _load(str(Path(text).resolve()) if text.endswith(".toml") else text)


@cache
def _load(name: str) -> BenchmarkVersion:
    raw = _read(name)
    where = f"version file {raw.pop('_path')}"
    workloads = {
        key: _build(WorkloadTerms, value, f"{where}, [workloads.{key}]")
        for key, value in raw.pop("workloads", {}).items()
    }
    parts = {key: _build(part, raw.pop(key, {}), f"{where}, [{key}]") for key, part in _PARTS.items()}
    for key in ("base_workloads", "held_out_workloads"):
        raw[key] = tuple(raw.get(key, ()))
    version: BenchmarkVersion = _build(BenchmarkVersion, {**raw, **parts, "workloads": workloads}, where)
    missing = [key for key in (*version.base_workloads, *version.held_out_workloads) if key not in workloads]
    if missing:
        raise UsageError(
            f"{where}: no table [workloads.{missing[0]}], although it is listed as a workload of the score."
        )
    return version


_PARTS: dict[str, type[Any]] = {"protocol": Protocol, "tuning": Tuning, "hardware": Hardware, "precision": Precision}


def _read(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else VERSION_FILES / f"{name.replace('.', '_')}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise UsageError(f"No version file {path}. Give a TOML file, or one of: {', '.join(version_names())}.")
        raise UnknownNameError("benchmark version", name, version_names())
    try:
        own: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"Cannot read version file {path}: {error}.") from error
    inherits = own.pop("inherits", None)
    only_own = own.pop("only_own_workloads", False)
    if inherits is None:
        return {**own, "_path": str(path)}
    base = _read(str(inherits))
    if only_own:
        base.pop("workloads", None)
    return {**_overlay(base, own), "_path": str(path)}


def _overlay(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        merged[key] = (
            _overlay(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def _build(kind: type[Any], values: object, where: str) -> Any:
    """A dataclass from a TOML table, with every key and type checked."""
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected a table, found {values!r}.")
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}. Known: {', '.join(known)}.")
        _check_type(value, hints[key], f"{where}, key {key!r}")
    try:
        return kind(**values)
    except TypeError as error:
        missing = [key for key in known if key not in values]
        raise UsageError(f"{where}: missing keys ({error}). Expected also: {', '.join(missing)}.") from error


def _check_type(value: object, hint: Any, where: str) -> None:
    accepted = get_args(hint)
    if accepted and all(isinstance(item, str) for item in accepted):  # a Literal
        if value not in accepted:
            raise UsageError(f"{where}: {value!r} is not allowed. Must be one of: {', '.join(accepted)}.")
    elif hint in (float, float | None, int, int | None) and (
        isinstance(value, int | float) and not isinstance(value, bool)
    ):
        if not math.isfinite(value) or (hint in (int, int | None) and not isinstance(value, int)):
            raise UsageError(f"{where}: {value!r} is not a finite number of the right kind.")
    elif hint in (str, bool, int, float, str | None, float | None, int | None):
        kinds = get_args(hint) or (hint,)
        if not isinstance(value, kinds):
            raise UsageError(f"{where}: {value!r} has the wrong type; expected {getattr(hint, '__name__', hint)}.")
