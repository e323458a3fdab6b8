"""`algoperf report`: one HTML file that shows a set of runs and loads nothing, or figures for a paper."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from algoperf_torch.errors import UsageError
from algoperf_torch.scoring import terminal
from algoperf_torch.scoring.logs import read_logs
from algoperf_torch.scoring.report import content
from algoperf_torch.scoring.score import ScoreResult, reading_progress, score_logs

FILES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Writes a report of run directories: leaderboard, profiles, curves, tuning, phases, validity, environment."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of submissions, or single submissions, as for `algoperf score`."""
    out: Path = Path("report.html")
    """File to write. Figures are written beside it: <name>_profile.png, <name>_times.png, <name>_curves.png."""
    format: Literal["html", "png", "pdf"] = "html"
    """html: the whole report in one file; png, pdf: figures for a paper."""
    title: str = "AlgoPerf results"
    """Title of the page."""
    version: str | None = None
    """Benchmark version: v0.5, v0.6, v1.0, mini, local, or a TOML file. Default: the one that the runs name."""
    ruleset: Literal["external", "self"] | None = None
    """Tuning ruleset. Default: the one that the runs name."""
    rule: Literal["official", "documented"] = "official"
    """official: as the code behind the published tables; documented: as the written rules, void trials left out."""
    submissions: tuple[str, ...] = ()
    """Only these submissions. Default: all."""
    reference: str | None = None
    """Submission that speedups are relative to."""
    mixed: bool = False
    """Show runs of different hardware, versions or compile policies in one ranking."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("No run directory given. Write, for example: algoperf report runs/ --out report.html")


def render(result: ScoreResult, title: str = "AlgoPerf results") -> str:
    """The page as text. Names and messages from logs are escaped; a policy in the page refuses any script but its own."""
    import jinja2
    from markupsafe import Markup

    shown = content.build(result, title)
    script = (FILES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    rows = content.phase_rows(shown["phases"])
    return environment.get_template("report.html.j2").render(
        c=shown,
        machines=sorted({row["hardware"] for row in shown["board"] if row["hardware"]}),
        phases=rows,
        phase_groups=content.groups_of(rows, "workload"),
        phase_names=content.PHASES,
        seconds=lambda value: terminal.seconds(math.inf if value is None else value),
        steps=lambda value: "" if value is None else f"{value:,.0f} steps",
        style=Markup((FILES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        data=Markup(embed(shown)),
    )


def embed(value: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: no character in it can end the element or start another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def main(options: ReportOptions) -> int:
    """Writes the files and says where they are. Raises `LogError` and `UsageError`."""
    with reading_progress() as progress:
        logs = read_logs(options.runs, all_columns=True, progress=progress)
    result = score_logs(
        logs.select(options.submissions) if options.submissions else logs,
        options.version,
        options.ruleset,
        options.rule,
        reference=options.reference,
        mixed=options.mixed,
    )
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if options.format == "html":
            options.out.write_text(render(result, options.title), encoding="utf-8", errors="backslashreplace")
            written = [options.out]
        else:
            from algoperf_torch.scoring.report import figures

            written = figures.write(result, options.out, options.format)
    except OSError as error:
        raise UsageError(f"Cannot write {options.out}: {error.strerror or error}.") from error
    for path in written:
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")  # noqa: T201
    return 0
