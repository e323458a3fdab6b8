"""Figures for a paper, drawn with matplotlib: profiles, times to target, training curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from algoperf_torch.scoring.report.content import build
from algoperf_torch.scoring.score import ScoreResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5cd6", "#8c564b")
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "legend.frameon": False, "svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False,
}  # fmt: skip


def write(result: ScoreResult, out: Path, kind: str) -> list[Path]:
    """Writes `<name>_profile`, `<name>_times` and `<name>_curves` beside `out`; returns their paths."""
    import matplotlib as mpl

    mpl.use("agg")
    written = []
    with mpl.rc_context(STYLE):
        content = build(result, "")
        for name, draw in (("profile", profile_figure), ("times", times_figure), ("curves", curves_figure)):
            path = out.with_name(f"{out.stem}_{name}.{kind}")
            draw(content).savefig(path, dpi=200, bbox_inches="tight")
            written.append(path)
    return written


def _line(s: int) -> dict[str, Any]:
    return {"color": COLORS[s % len(COLORS)], "linestyle": DASHES[s // len(COLORS) % len(DASHES)]}


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def profile_figure(content: dict[str, Any]) -> Figure:
    figure, (axes,) = _figure(4.5, 3.0)
    for row in content["board"]:
        ratios = sorted(r for r in content["ratios"][row["index"]] if r is not None and r <= 4)
        heights = np.arange(len(ratios) + 1) / content["num_base"]
        axes.step([1.0, *ratios, 4.0], [*heights, heights[-1]], where="post", label=row["name"], **_line(row["index"]))
    axes.set(
        xlim=(1, 4), ylim=(0, 1.02), xlabel="time relative to the fastest, τ", ylabel="fraction of workloads solved"
    )
    axes.legend(fontsize=7)
    return figure


def times_figure(content: dict[str, Any]) -> Figure:
    """Ratios to the fastest on each base workload; a cross where the target was not reached or does not count."""
    base = content["workloads"][: content["num_base"]]
    figure, (axes,) = _figure(7.0, 0.6 + 0.32 * len(base))
    places = np.arange(len(base))
    for position, row in enumerate(content["board"]):
        ratios = [math.nan if r is None else r for r in content["ratios"][row["index"]]]
        shift = (position - (len(content["board"]) - 1) / 2) * 0.7 / max(1, len(content["board"]))
        color = COLORS[row["index"] % len(COLORS)]
        axes.plot(ratios, places + shift, "o", markersize=4, color=color, label=row["name"])
        missing = np.isnan(ratios)
        axes.plot(np.full(missing.sum(), 4.2), places[missing] + shift, "x", markersize=4, color=color)
    axes.set(xlim=(0.9, 4.35), xlabel="time relative to the fastest (x: not solved)", yticks=places)
    axes.set_yticklabels([w["name"] for w in base])
    axes.invert_yaxis()
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def curves_figure(content: dict[str, Any]) -> Figure:
    """One panel a base workload: the target metric of every trial against submission time."""
    base = content["workloads"][: content["num_base"]]
    columns = min(4, len(base))
    rows = math.ceil(len(base) / columns)
    figure, panels = _figure(2.4 * columns, 1.9 * rows, rows, columns)
    for panel in panels[len(base) :]:
        panel.axis("off")
    for w, (workload, panel) in enumerate(zip(base, panels, strict=False)):
        values = [workload["target"]]
        for curve in content["curves"]:
            if curve["workload"] != w or curve["validation"] is None:
                continue
            panel.plot(
                curve["seconds"],
                [math.nan if v is None else v for v in curve["validation"]],
                lw=0.8,
                alpha=0.8,
                **_line(curve["submission"]),
            )
            values += [v for v in curve["validation"] if v is not None]
        panel.axhline(workload["target"], color="black", lw=0.8, ls=(0, (4, 3)))
        panel.set_ylim(_window(values, workload["target"], higher=workload["higher"]))
        panel.set_title(workload["name"], fontsize=8)
        panel.set_ylabel(workload["metric"], fontsize=7)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(-2, 4))
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_line(row["index"])) for row in content["board"]]
    figure.legend(handles, [row["name"] for row in content["board"]], loc="outside upper center", ncols=4, fontsize=7)
    figure.supxlabel("submission time, seconds", fontsize=8)
    return figure


def _window(values: list[float], target: float, *, higher: bool) -> tuple[float, float]:
    """Limits of an axis: the better half of all values, with the target inside."""
    far = float(np.quantile(values, 0.3 if higher else 0.7))
    best = max(values) if higher else min(values)
    low, high = sorted(
        (min(far, target) if higher else max(far, target), max(best, target) if higher else min(best, target))
    )
    margin = 0.08 * (high - low) or 0.05 * abs(target) or 0.05
    return low - margin, high + margin
