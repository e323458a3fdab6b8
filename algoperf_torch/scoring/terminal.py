"""The result of `algoperf score` for people: tables in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from algoperf_torch.scoring.logs import Severity
from algoperf_torch.scoring.score import ScoreResult
from algoperf_torch.scoring.statistics import LEVEL
from algoperf_torch.scoring.times import Rule

SHOWN = 8  # lines of each list that may be long


def printable(name: str) -> str:
    """A name from the file system without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in name)


def seconds(value: float) -> str:
    """A time as a reader wants it: 0.42, 12.3, 1,976."""
    if math.isnan(value):
        return "no runs"
    if math.isinf(value):
        return "not reached"
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def print_result(result: ScoreResult, console: Console | None = None) -> None:
    """Ranking, times and steps to target, and everything that speaks against the numbers."""
    console = console or Console(highlight=False)
    multiplier = result.version.budget_multiplier(result.ruleset)
    console.print(
        Text(
            f"Version {printable(result.version.name)}, {result.ruleset.value} ruleset, {result.rule.value} rule: "
            f"{_count(len(result.logs.trials), 'trial')}, {_count(result.num_base, 'workload')}"
            + (f", budgets x {multiplier:g}" if multiplier != 1 else "")
        )
    )
    console.print(Text("\nRanking", style="bold"))
    console.print(ranking_table(result))
    console.print(
        Text(
            "The official rule adds up 100 points of the profile, the documented one integrates it exactly"
            + (", and some times differ (below)." if result.differences else "; all times are equal."),
            style="dim",
        )
    )
    console.print(Text("\nSeconds to target, steps below (median over studies)", style="bold"))
    for table in time_tables(result, console.width):
        console.print(table)
    not_counted = [
        f"{name} on {workload}: {why}"
        for s, name in enumerate(result.submissions)
        for w, workload in enumerate(result.base_workloads)
        if np.isfinite(result.standing.times[s, w]) and (why := result.why_void(s, w))
    ]
    _list(console, "Reached, but does not count (marked x):", not_counted)
    _list(
        console,
        "The official and the documented rule see these times differently:",
        [
            f"{d.submission} on {d.workload}: official {seconds(d.official)}, documented {seconds(d.documented)} ({d.why})"
            for d in result.differences
        ],
    )
    _list(
        console,
        "Studies without a result (left out by the documented rule):",
        [f"{name} on {workload}: {'; '.join(why)}" for (name, workload), why in result.incomplete.items()],
    )
    _list(
        console,
        "Validity flags:",
        [
            f"{name} on {workload}: {each.flag.name} in {_count(each.trials, 'trial')}, as: {each.flag.reason}"
            for (name, workload), flags in result.flags.items()
            for each in flags
        ],
        style="yellow",
    )
    for severity, title in (
        (Severity.DAMAGED, "Damaged:"),
        (Severity.IRREGULAR, "Irregular:"),
        (Severity.NOTE, "Notes:"),
    ):
        lines = [str(problem) for problem in result.problems if problem.severity is severity]
        if severity is Severity.NOTE:  # harmless, and often many of one kind
            kinds = Counter(problem.message for problem in result.problems if problem.severity is severity)
            lines = [f"{count} x {message}" for message, count in kinds.items()]
        _list(console, title, lines, style="red" if severity is Severity.DAMAGED else "")
    _list(console, "Before you believe the ranking:", result.warnings, style="yellow")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def ranking_table(result: ScoreResult) -> Table:
    standing, other = result.standing, result.standings[_other(result.rule)]
    table = Table()
    headers = ["rank", "submission", "score", other.rule.value, "solved"]
    if result.intervals is not None:
        headers.insert(3, f"{LEVEL:.0%} of studies")
    if result.speedups is not None:
        headers.append(f"speedup over {printable(str(result.reference))}")
    if result.flags:
        headers.append("flags")
    machines = [result.hardware(s) for s in range(len(result.submissions))]
    if several := len(set(machines)) > 1:
        headers.append("hardware")
    for header in headers:
        left = header in ("submission", "hardware")
        table.add_column(Text(header), justify="left" if left else "right", overflow="fold")
    for s in result.ranking:
        solved = int(np.isfinite(standing.base_times[s]).sum())
        cells = [
            f"{standing.ranks[s]}",
            printable(result.submissions[s]),
            f"{standing.scores[s]:.4f}",
            f"{other.scores[s]:.4f}",
            f"{solved}/{result.num_base}",
        ]
        if result.intervals is not None:
            cells.insert(3, "{:.3f} to {:.3f}".format(*result.intervals[0][s]))
        if result.speedups is not None:
            cells.append("-" if math.isnan(result.speedups[s]) else f"{result.speedups[s]:.3f}")
        if result.flags:
            name = result.submissions[s]
            cells.append(
                str(sum(each.trials for (who, _), flags in result.flags.items() if who == name for each in flags))
            )
        if several:
            cells.append(printable(machines[s]) or "not known")
        table.add_row(*map(Text, cells))
    return table


def time_tables(result: ScoreResult, width: int) -> list[Table]:
    """Median seconds and steps to target, best submissions first; as many tables as the width asks for."""
    first = max(len(name) for name in result.workloads) + 2
    cell = max(16, *(len(name) + 2 for name in result.submissions))
    per_table = max(1, (width - first - 1) // (cell + 1))
    ranking = result.ranking
    chunks = [ranking[i : i + per_table] for i in range(0, len(ranking), per_table)]
    return [_time_table(result, chunk) for chunk in chunks]


def _time_table(result: ScoreResult, chunk: Sequence[int]) -> Table:
    standing = result.standing
    table = Table()
    table.add_column("workload")
    for s in chunk:
        table.add_column(Text(printable(result.submissions[s])), justify="right", overflow="fold")
    fastest = standing.base_times.min(axis=0)
    for w, workload in enumerate(result.workloads):
        cells = [
            Text(
                workload + (" (held out)" if w >= result.num_base else ""),
                style="bold" if w < result.num_base else "dim",
            )
        ]
        for s in chunk:
            time, steps = float(standing.times[s, w]), float(standing.steps[s, w])
            text = seconds(time)
            style = "dim"
            if math.isfinite(time) and w < result.num_base:
                counts = math.isfinite(standing.base_times[s, w])
                text += "" if counts else " x"
                style = "dim" if not counts else "bold green" if standing.base_times[s, w] == fastest[w] else ""
            cells.append(Text(text + (f"\n{steps:,.0f}" if math.isfinite(steps) else ""), style=style))
        table.add_row(*cells)
    return table


def _other(rule: Rule) -> Rule:
    return Rule.DOCUMENTED if rule is Rule.OFFICIAL else Rule.OFFICIAL


def _list(console: Console, title: str, lines: Iterable[str], style: str = "") -> None:
    lines = list(lines)
    if not lines:
        return
    console.print(Text(f"\n{title}", style=f"bold {style}".strip()))
    for line in lines[:SHOWN]:
        console.print(Text(f"  {printable(line)}", style=style))
    if len(lines) > SHOWN:
        console.print(Text(f"  ... and {len(lines) - SHOWN} more; --json tells all", style=style))
