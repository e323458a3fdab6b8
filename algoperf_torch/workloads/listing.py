"""`algoperf workloads`: every workload with its targets and budgets in every benchmark version. Imports no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from algoperf_torch.spec import Split
from algoperf_torch.versions import BenchmarkVersion, WorkloadTerms, load_version, version_names
from algoperf_torch.workloads.registry import workload_names, workload_spec

PIPE_WIDTH = 200  # characters, where the output is no terminal


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Lists the workloads: task, data, model, loss, target metric; targets and budgets by benchmark version."""

    version: tuple[str, ...] = ()
    """Benchmark versions to show, by name or path. Default: all."""
    json: bool = False
    """Print a JSON array with one object for each workload."""


def main(options: ListOptions) -> int:
    """Prints the table, or JSON; returns 0. Raises `UnknownNameError` for a version that does not exist."""
    versions = [load_version(name) for name in options.version or version_names()]
    if options.json:
        sys.stdout.write(json.dumps([describe(name, versions) for name in workload_names()], indent=1) + "\n")
        return 0
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(table(versions))
    return 0


def describe(name: str, versions: list[BenchmarkVersion]) -> dict[str, Any]:
    """All facts of a workload as plain values; `versions` holds the terms of those versions that have it."""
    spec = workload_spec(name)
    return {
        "name": spec.name,
        "base": spec.base,
        "task": spec.task,
        "dataset": spec.dataset,
        "model": spec.model,
        "parameters": spec.num_parameters,
        "loss": spec.loss.value,
        "metric": spec.metric,
        "higher_is_better": spec.higher_is_better,
        "metrics": list(spec.metrics),
        "examples": {split.value: spec.num_examples(split) for split in Split},
        "batch_size": spec.batch_size,
        "eval_batch_size": spec.eval_batch_size,
        "default_dropout": spec.default_dropout,
        "versions": {
            version.name: _terms(version.workloads[name]) for version in versions if name in version.workloads
        },
    }


def _terms(terms: WorkloadTerms) -> dict[str, Any]:
    return {
        "validation_target": terms.validation_target,
        "test_target": terms.test_target,
        "budget_seconds": terms.budget_seconds,
        "eval_period_seconds": terms.eval_period_seconds,
        "step_hint": terms.step_hint,
    }


def table(versions: list[BenchmarkVersion]) -> Table:
    """One row for each workload, variants under their base; a column of budgets for each version."""
    caption = "Targets: validation / test. Budgets: submission time of the external ruleset, by version."
    small = [version for version in versions if version.model_scale != "full"]
    if small:
        caption += f" Models of {', '.join(version.name for version in small)} are smaller and their data generated."
    result = Table(caption=caption)
    result.add_column("workload", no_wrap=True)
    for heading in ("task", "data", "model", "loss", "metric"):
        result.add_column(heading)
    result.add_column("parameters", justify="right", no_wrap=True)
    result.add_column("targets", justify="right", no_wrap=True)
    for version in versions:
        result.add_column(version.name, justify="right", no_wrap=True)
    specs = [workload_spec(name) for name in workload_names() if any(name in version.workloads for version in versions)]
    for spec in sorted(specs, key=lambda spec: (spec.base, spec.name != spec.base, spec.name)):
        terms = [version.workloads.get(spec.name) for version in versions]
        result.add_row(
            spec.name if spec.name == spec.base else f"  {spec.name}",
            spec.task,
            spec.dataset,
            spec.model,
            spec.loss.value.replace("_", " "),
            f"{spec.metric} {'↑' if spec.higher_is_better else '↓'}",
            "" if spec.num_parameters is None or small == versions else f"{spec.num_parameters:,}",
            _targets(
                {version.name: term for version, term in zip(versions, terms, strict=True) if term is not None},
                {version.name for version in small},
            ),
            *("-" if term is None else _duration(term.budget_seconds) for term in terms),
        )
    return result


def _targets(terms: dict[str, WorkloadTerms], small: set[str]) -> str:
    """The targets, once where the versions agree; without names where all versions of full-size models do."""
    by_targets: dict[str, list[str]] = {}
    for version, term in terms.items():
        test = "" if term.test_target is None else f" / {term.test_target:g}"
        by_targets.setdefault(f"{term.validation_target:g}{test}", []).append(version)
    if len(by_targets) == 1:
        return next(iter(by_targets))
    full = [name for name in terms if name not in small]
    return "\n".join(
        targets if names == full else f"{', '.join(names)}: {targets}" for targets, names in by_targets.items()
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds:,.0f} s"
