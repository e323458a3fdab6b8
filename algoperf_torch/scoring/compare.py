"""`algoperf compare A B`: is A faster than B? One screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import tyro

from algoperf_torch.errors import LogError, UsageError
from algoperf_torch.scoring import output
from algoperf_torch.scoring.logs import Severity
from algoperf_torch.scoring.score import (
    ScoreResult,
    censoring_budgets,
    difference_in_kernels,
    reading_progress,
    score_logs,
)
from algoperf_torch.scoring.statistics import LEVEL, SIGNIFICANCE, Comparison, compare_times
from algoperf_torch.scoring.terminal import printable, seconds

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Is A faster than B? Names of two submissions in --runs, or the directories of two submissions."""

    first: tyro.conf.Positional[str]
    """A submission's name or directory."""
    second: tyro.conf.Positional[str]
    """Another submission's name or directory."""
    runs: tuple[Path, ...] = (Path("runs"),)
    """Directories in which to look for names."""
    version: str | None = None
    """Benchmark version: v0.5, v0.6, v1.0, mini, local, or a TOML file. Default: the one that the runs name."""
    ruleset: Literal["external", "self"] | None = None
    """Tuning ruleset. Default: the one that the runs name."""
    rule: Literal["official", "documented"] = "documented"
    """How times are taken from trials: documented leaves void trials out; official is as the published tables."""
    mixed: bool = False
    """Compare runs of different hardware, versions or compile policies."""
    json: Path | None = None
    """Write the comparison as JSON to this file; - for standard output instead of the table."""


def compare(options: CompareOptions) -> tuple[ScoreResult, Comparison]:
    """Both submissions' results, and the comparison of their times on the base workloads.

    Raises `LogError` where a submission is not found, or the two have no workload in common.
    """
    from algoperf_torch.scoring.logs import read_logs

    paths = [Path(name) for name in (options.first, options.second) if Path(name).is_dir()]
    missing = [name for name in (options.first, options.second) if not Path(name).is_dir()]
    if missing:
        paths += [run for run in options.runs if run.is_dir()]
    if not paths:
        raise LogError(
            f"No directory {missing[0]}, nor {options.runs[0]}. Name the submissions' directories, or add --runs DIR."
        )
    with reading_progress() as progress:
        logs = read_logs(paths, progress=progress)
    names = [_label(name, logs.submissions) for name in (options.first, options.second)]
    if names[0] == names[1]:
        raise UsageError(f"{options.first} and {options.second} are the same submission.")
    result = score_logs(
        logs.select(names), options.version, options.ruleset, options.rule, bootstrap=0, mixed=options.mixed
    )
    times = result.standing.studies.seconds[:, : result.num_base]
    budgets = censoring_budgets(result.logs, result.version, result.ruleset, result.base_workloads)
    first, second = (result.submissions.index(name) for name in names)
    try:
        return result, compare_times(times[first], times[second], budgets)
    except ValueError as error:
        raise LogError(f"{names[0]} and {names[1]}: {error}.") from error


def _label(name: str, known: Sequence[str]) -> str:
    """The label under which a submission was read, from its name or directory."""
    path = Path(name).resolve()
    for label in (name, path.name, f"{path.parent.name}/{path.name}", str(path)):
        if label in known:
            return label
    raise LogError(f"No submission {name!r}. Present: {', '.join(known)}.")


def main(options: CompareOptions) -> int:
    """Prints the comparison, or writes it as JSON."""
    result, comparison = compare(options)
    names = [_label(name, result.submissions) for name in (options.first, options.second)]
    if options.json is not None:
        output.write_json(_to_json(result, comparison, names), options.json)
    if options.json != Path("-"):
        from rich.console import Console

        _print(result, comparison, names, Console(highlight=False))
    return 0


def verdict(comparison: Comparison, first: str, second: str) -> str:
    """The answer in a sentence."""
    ratio = comparison.speedup
    faster, slower = (first, second) if ratio >= 1 else (second, first)
    if comparison.decided:
        return f"{faster} is {max(ratio, 1 / ratio):.2f} times as fast as {slower} (p = {comparison.p_studies:.2g})."
    if comparison.p_studies_smallest > SIGNIFICANCE:
        return (
            f"Too few studies to say: {faster} was {max(ratio, 1 / ratio):.2f} times as fast as {slower}, but so few studies "
            f"cannot give a p-value below {comparison.p_studies_smallest:.2g}. Run more studies."
        )
    return (
        f"No difference shown: {faster} was {max(ratio, 1 / ratio):.2f} times as fast as {slower}, which luck gives in "
        f"{comparison.p_studies:.0%} of cases."
    )


def _print(result: ScoreResult, comparison: Comparison, names: Sequence[str], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    first, second = (result.submissions.index(name) for name in names)
    shown = [printable(name) for name in names]
    console.print(Text(verdict(comparison, *shown), style="bold"))
    over = f"{comparison.workloads} workload{'s' if comparison.workloads != 1 else ''} of version {result.version.name}"
    if comparison.studies < 2:
        interval = f"One study, over {over}: no interval can be given."
    else:
        interval = (
            f"{comparison.low:.2f} to {comparison.high:.2f} times in {LEVEL:.0%} of resampled studies, over {over}."
        )
    console.print(
        Text(
            f"{interval} Would it hold on other workloads? p = {comparison.p_workloads:.2g}; smallest possible: "
            f"{comparison.p_workloads_smallest:.2g}.",
            style="dim",
        )
    )
    table = Table(
        title="Seconds to target, steps below (median over studies)", title_justify="left", title_style="bold"
    )
    table.add_column("workload", no_wrap=True)
    for name in shown:
        table.add_column(Text(name), justify="right", overflow="fold")
    table.add_column(Text(f"{shown[0]} is faster, times"), justify="right")
    standing = result.standing
    for w, workload in enumerate(result.base_workloads):
        times = [float(standing.times[s, w]) for s in (first, second)]
        steps = [float(standing.steps[s, w]) for s in (first, second)]
        ratio = times[1] / times[0] if math.isfinite(times[0]) and times[0] > 0 else math.nan
        table.add_row(
            Text(workload),
            *(
                Text(
                    seconds(time) + (f"\n{count:,.0f}" if math.isfinite(count) else ""),
                    style="green" if time == min(times) and math.isfinite(time) else "",
                )
                for time, count in zip(times, steps, strict=True)
            ),
            Text("-" if math.isnan(ratio) else "only it" if math.isinf(ratio) else f"{ratio:.2f}"),
        )
    console.print(table)
    doubtful = [
        *difference_in_kernels(result.logs),
        *(f"{n} on {w}: {'; '.join(why)}" for (n, w), why in result.incomplete.items()),
    ]
    doubtful += [
        f"{name} on {workload}: {each.flag.name}: {each.flag.reason}"
        for (name, workload), flags in result.flags.items()
        for each in flags
    ]
    doubtful += [str(problem) for problem in result.problems if problem.severity is Severity.DAMAGED]
    for line in doubtful[:8]:
        console.print(Text(f"  {printable(line)}", style="yellow"))
    if len(doubtful) > 8:
        console.print(Text(f"  ... and {len(doubtful) - 8} more; `algoperf score` tells all", style="yellow"))


def _to_json(result: ScoreResult, comparison: Comparison, names: Sequence[str]) -> dict[str, object]:
    times = result.by_workload(np.where(np.isfinite(result.standing.times), result.standing.times, np.nan))
    return {
        "first": names[0],
        "second": names[1],
        "verdict": verdict(comparison, *names),
        "version": result.version.name,
        "rule": result.rule.value,
        "speedup": comparison.speedup,
        "interval": None if comparison.studies < 2 else [comparison.low, comparison.high],
        "workloads": comparison.workloads,
        "p_studies": comparison.p_studies,
        "p_workloads": comparison.p_workloads,
        "notes": difference_in_kernels(result.logs),
        "times": {
            name: {w: None if math.isnan(value) else value for w, value in times[name].items()} for name in names
        },
    }
