"""`algoperf sanity SUBMISSION`: a minute of small pathologies, and a table of what each failure means."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from algoperf_torch.optim.sanity import PROBLEMS, Outcome, run_suite
from algoperf_torch.runner.search_space import parse_hparams
from algoperf_torch.runner.submissions import load_submission


@dataclass(frozen=True, kw_only=True)
class SanityOptions:
    """Trains a submission on small pathological problems, on the CPU, in about a minute."""

    submission: tyro.conf.Positional[str]
    """A registered name, an import path (torch.optim:AdamW), or a file (my_lion.py:Lion)."""
    hparams: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Hyperparameters; without lr, learning rates around the default are tried."""
    schedule: str | None = None
    """Learning-rate schedule: constant, cosine, linear, trapezoidal."""


def main(options: SanityOptions) -> int:
    """Prints the table; returns 0 where the submission trains at all and resumes, else 1."""
    submission = load_submission(options.submission, schedule=options.schedule)
    outcomes = run_suite(submission.algorithm, dict(parse_hparams(options.hparams)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160, file=sys.stdout)
    console.print(table(submission.name, outcomes))
    return 0 if outcomes[0].passed and any(outcome.passed for outcome in outcomes[1:]) else 1


def table(name: str, outcomes: list[Outcome]) -> Table:
    questions = {problem.name: problem.question for problem in PROBLEMS} | {
        "resume": "saved and resumed, it goes on exactly"
    }
    result = Table("problem", "result", "error left", "lr", "asked / a failure means", title=name, title_justify="left")
    for outcome in outcomes:
        result.add_row(
            outcome.problem,
            "passed" if outcome.passed else "FAILED",
            f"{outcome.error:.2g}",
            "" if math.isnan(outcome.lr) else f"{outcome.lr:g}",
            questions[outcome.problem] if outcome.passed else outcome.meaning,
        )
    return result
