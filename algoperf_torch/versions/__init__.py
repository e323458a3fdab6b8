"""Benchmark versions as data: each TOML file beside this module is one version of the rules.

`load_version("v0.6")` reads a built-in version, `load_version("mine.toml")` a user's own file. A file may start from
another version: with `inherits = "v0.6"` (or a path, relative to the file's own folder) its tables are laid over the
other's, key by key; tables named in `replaces` are taken as they stand. A workload that sets `variant_of` takes what it
leaves out from that workload, and `base_workloads = "all"` lists every workload of the file. Needs no torch.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

from algoperf_torch.errors import UnknownNameError, UsageError
from algoperf_torch.spec import Generation, ModelScale, Ruleset, Target, higher_is_better

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
    compile_policy: Literal[
        "fresh", "prewarmed", "off"
    ]  # whether compiling the harness's own graphs is charged; off: not done
    batch_norm_groups: int  # groups of the global batch that are normalised each by its own statistics
    page_cache: Literal["any", "warm", "cold"]  # the operating system's cache of the data files before the clock

    def __post_init__(self) -> None:
        _require_positive(self, "step_limit_hints", "batch_norm_groups")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How many trials make a result."""

    studies: int
    external_trials: int  # trials in a study of the external ruleset; the self-tuning ruleset has one
    self_tuning_multiplier: float  # of the budget
    points: Literal["shared", "partitioned"] = "shared"  # hyperparameters of the studies: equal, or drawn apart

    def __post_init__(self) -> None:
        _require_positive(self, "studies", "external_trials", "self_tuning_multiplier")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine that an official run must have. `None` accepts anything."""

    device: str | None = None  # the name that the driver reports
    num_devices: int | None = None
    device_memory_gib: float | None = None  # nominal
    memory_gib: float | None = None  # nominal, of the host
    num_cpus: int | None = None  # logical
    driver: str | None = None
    python: str | None = None
    torch: str | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "num_devices", "device_memory_gib", "memory_gib", "num_cpus")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Numerical flags that the harness sets and guards."""

    float32_matmul: Literal["highest", "high", "medium"]
    cudnn_benchmark: bool = True


@dataclass(frozen=True, kw_only=True)
class WorkloadTerms:
    """What a version says of one workload."""

    variant_of: str | None = None  # the workload that this one modifies
    metric: str
    validation_target: float
    test_target: float | None = None  # None where there is no test split
    budget_seconds: float  # of the external ruleset
    eval_period_seconds: float
    step_hint: int
    eval_batch_size: int | None = None  # None: the workload's own

    def __post_init__(self) -> None:
        higher_is_better(self.metric)  # raises for an unknown name
        _require_positive(self, "budget_seconds", "eval_period_seconds", "step_hint", "eval_batch_size")

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
    score_over: Literal["listed", "present"] = "listed"  # a score is a mean over all base workloads, or those with logs
    model_scale: ModelScale = "full"
    data: Mapping[str, Generation] = field(default_factory=dict)  # by dataset: generated data in place of the published
    workloads: Mapping[str, WorkloadTerms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("base_workloads", "held_out_workloads"):
            names = getattr(self, key)
            unknown = [name for name in names if name not in self.workloads]
            if unknown:
                raise ValueError(f"{key} lists {unknown[0]!r}, but there is no table [workloads.{unknown[0]}].")
            if len(set(names)) < len(names):
                raise ValueError(f"{key} lists a workload twice.")

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

    Raises `UnknownNameError` for a name that is neither, `UsageError` for a file that cannot be read as a version, or that
    has the name of a built-in one: its trials would pass for trials of that.
    """
    text = str(name)
    if not text.endswith(".toml"):
        return _builtin(text)
    version = _build_version(_find(text, Path()))
    if version.name in version_names():
        raise UsageError(
            f"Version file {text}: its name {version.name!r} is that of a built-in version. "
            'Give it one of its own, as in name = "mine".'
        )
    return version


def recorded_version(record: Mapping[str, Any]) -> BenchmarkVersion:
    """The version that a trial ran under, from its `trial.json`; one of the user's own from the file that was given.

    Raises `UsageError` where that file cannot be read or holds another version now.
    """
    name, options = record.get("version"), record.get("options")
    given = options.get("version") if isinstance(options, Mapping) else None
    if name in version_names() or not str(given).endswith(".toml"):
        return load_version(str(name))
    version = load_version(str(given))
    if version.name != name:
        raise UsageError(f"Version file {given} holds version {version.name!r} now; the trial ran under {name!r}.")
    return version


@cache
def _builtin(name: str) -> BenchmarkVersion:
    return _build_version(_find(name, Path()))


_PARTS: dict[str, type[Any]] = {"protocol": Protocol, "tuning": Tuning, "hardware": Hardware, "precision": Precision}


def _build_version(path: Path) -> BenchmarkVersion:
    raw = _read(path, ())
    where = f"Version file {path}"
    tables, data = raw.pop("workloads", {}), raw.pop("data", {})
    for kind, found, name in (("workloads", tables, "name"), ("data", data, "dataset")):
        for key, table in {kind: found, **(found if isinstance(found, dict) else {})}.items():
            if not isinstance(table, dict):
                raise UsageError(f"{where}: {key} is {table!r}. Write tables: [{kind}.<{name}>].")
    workloads: dict[str, WorkloadTerms] = {}
    for key, table in tables.items():
        base = {}
        if "variant_of" in table:
            base = tables.get(str(table["variant_of"]), {})
            if not base or "variant_of" in base:
                raise UsageError(
                    f"{where}, [workloads.{key}]: variant_of = {table['variant_of']!r}. Write the name of a "
                    "workload of the version that is not itself a variant."
                )
        workloads[key] = _build(WorkloadTerms, {**base, **table}, f"{where}, [workloads.{key}]")
    parts = {key: _build(part, raw.pop(key, {}), f"{where}, [{key}]") for key, part in _PARTS.items()}
    if raw.get("base_workloads") == "all":
        raw["base_workloads"] = list(workloads)
    parts["data"] = {key: _build(Generation, table, f"{where}, [data.{key}]") for key, table in data.items()}
    version: BenchmarkVersion = _build(BenchmarkVersion, {**raw, **parts, "workloads": workloads}, where)
    return version


def _find(name: str, folder: Path) -> Path:
    """The file of a version's name, or of a path relative to `folder`."""
    if name.endswith(".toml"):
        path = folder / name
        if not path.is_file():
            raise UsageError(f"No version file {path}. Give a TOML file, or one of: {', '.join(version_names())}.")
        return path
    if name not in version_names():
        raise UnknownNameError("benchmark version", name, version_names())
    return VERSION_FILES / f"{name.replace('.', '_')}.toml"


def _read(path: Path, heirs: tuple[Path, ...]) -> dict[str, Any]:
    """The tables of a file laid over those that it inherits. `heirs` are the files that led here."""
    if path.resolve() in heirs:
        raise UsageError(
            f"Version file {path} inherits from itself, through {len(heirs)} files. Remove one `inherits`."
        )
    try:
        own: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # bad TOML and bad UTF-8 are both ValueErrors
        raise UsageError(f"Cannot read version file {path}: {error}.") from error
    inherits, replaces = own.pop("inherits", None), own.pop("replaces", [])
    if inherits is None:
        return own
    if not isinstance(inherits, str) or not _is_list_of_names(replaces):
        raise UsageError(f'Version file {path}: write inherits = "v0.6" and replaces = ["hardware"].')
    base = _read(_find(inherits, path.parent), (*heirs, path.resolve()))
    unknown = [key for key in replaces if key not in base]
    if unknown:
        raise UsageError(f"Version file {path}: replaces {unknown[0]!r}, which {inherits} has not: {', '.join(base)}.")
    return _overlay({key: value for key, value in base.items() if key not in replaces}, own)


def _overlay(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged


def _build(kind: type[Any], values: object, where: str) -> Any:
    """A dataclass from a TOML table, with every key and type checked."""
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected a table, found {values!r}.")
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UsageError(f"{where}: unknown key {key!r}. Known: {', '.join(hints)}.")
    for item in fields(kind):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"{where}: key {item.name!r} is missing.")
    converted = {key: _convert(value, hints[key], f"{where}, key {key!r}") for key, value in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def _convert(value: object, hint: Any, where: str) -> object:
    """The TOML value as the field's type; whole numbers become floats where the field is one."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UsageError(f"{where}: {value!r} is not allowed. Must be one of: {', '.join(get_args(hint))}.")
        return value
    if hint == tuple[str, ...]:
        if not _is_list_of_names(value):
            raise UsageError(f"{where}: {value!r} is not a list of names.")
        return tuple(value)
    kind = get_args(hint)[0] if isinstance(hint, UnionType) else hint  # `float | None`: TOML has no null
    if kind not in (str, bool, int, float):
        return value  # a part that is built already
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where}: {value!r} has the wrong type; expected {kind.__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {value!r} is not a finite number.")
    return value


def _is_list_of_names(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _require_positive(part: object, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive.")
