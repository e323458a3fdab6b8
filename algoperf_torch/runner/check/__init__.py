"""`algoperf check`: looks through the source of a submission for what the rules forbid, without executing it.

It catches what an honest author did not know, and what a careless cheat leaves in the open. Code that hides what it does
passes: what makes a result official is that somebody reads the source and runs it again.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from algoperf_torch.runner.check import rules
from algoperf_torch.runner.check.sources import Sources, find_sources, unreadable
from algoperf_torch.runner.check.visitor import Finding, look_through

RULES_PAGE = "docs/rules.md#what-a-submission-may-not-do"


@dataclass(frozen=True)
class CheckOptions:
    """Looks through a submission's source for what the rules forbid; executes nothing of it."""

    submission: tyro.conf.Positional[str]
    """A registered name, an import path (torch.optim:AdamW), a file (my_lion.py:Lion), or a folder."""
    json: bool = False
    """Print the findings as JSON."""


def main(options: CheckOptions) -> int:
    """Prints the findings. 1 where one is an error, else 0."""
    from rich.console import Console

    sources = find_sources(options.submission)
    findings = check(sources)
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if options.json:
        value = {
            "submission": options.submission,
            "files": [str(file) for file in sources.files],
            "errors": errors,
            "warnings": warnings,
            "findings": [
                {
                    "file": str(finding.file),
                    "line": finding.line,
                    "rule": finding.rule,
                    "severity": finding.severity,
                    "what": finding.what,
                    "why": finding.why,
                }
                for finding in findings
            ],
        }
        console.print(json.dumps(value, indent=2))
        return 1 if errors else 0
    for finding in findings:
        console.print(f"{_shown(finding.file)}:{finding.line}: {finding.severity}: {finding.what} [{finding.rule}]")
    broken = list(dict.fromkeys(finding.rule for finding in findings))
    if broken:
        console.print(f"\nThe rules behind these ({RULES_PAGE}):")
    for rule in broken:
        console.print(f"  {rule}: {rules.RULES[rule]}")
    count = len(sources.files)
    console.print(
        f"{options.submission}: {count} file{'s' * (count > 1)}, {errors} error{'s' * (errors != 1)}, "
        f"{warnings} warning{'s' * (warnings != 1)}"
    )
    return 1 if errors else 0


def check(sources: Sources) -> list[Finding]:
    """All findings, by file and line. Raises `SubmissionLoadError` for a file that is no Python."""
    findings: list[Finding] = []
    for file in sources.files:
        try:
            tree = ast.parse(file.read_bytes(), filename=str(file))
        except (SyntaxError, ValueError) as error:
            raise unreadable(error, file) from error
        findings += look_through(file, tree)
    if sources.search_space is not None:
        findings += _look_through_space(sources.search_space)
    return findings


def _look_through_space(file: Path) -> list[Finding]:
    """Names of workloads in a search space; a space that is no JSON is told by whoever reads it."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        for part in line.split('"')[1::2]:
            if part.lower() in rules.forbidden_names():
                what = f"{part!r} is the name of a workload or dataset: hyperparameters are the same for all"
                found.append(Finding(file, number, "workload-names", "error", what))
    return found


def _shown(file: Path) -> Path:
    """Relative to the working folder where it is below it."""
    return file.relative_to(Path.cwd()) if Path.cwd() in file.parents else file
