"""`algoperf`: one command, a table of parts. Nothing of a part is imported before it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from algoperf_torch.errors import AlgoPerfError


class Command(NamedTuple):
    """`module` holds the options (a dataclass, parsed by tyro) and `main(options) -> exit status`."""

    module: str
    options: str
    main: str
    help: str


COMMANDS = {
    "run": Command(
        "runner.launch.local", "LocalRunOptions", "main", "train one trial on this machine, on any number of ranks"
    ),
    "tune": Command("runner.tune", "TuneOptions", "main", "run all missing trials of a submission, supervised"),
    "plan": Command("runner.tune", "TuneOptions", "plan_main", "print what `tune` would run, with its cost"),
    "status": Command("runner.standing", "StatusOptions", "main", "how the trials stand: pending, running, ended"),
    "score": Command("scoring.score", "ScoreOptions", "main", "times to target, performance profiles, ranking"),
    "compare": Command("scoring.compare", "CompareOptions", "main", "is A faster than B?"),
    "report": Command(
        "scoring.report", "ReportOptions", "main", "one HTML file that shows it all; PNG or PDF for papers"
    ),
    "import-logs": Command(
        "interop.official_logs", "ImportOptions", "main", "copy published results beside your runs, as references"
    ),
    "targets": Command("scoring.targets", "TargetsOptions", "main", "set targets and budgets from your own runs"),
    "held-out": Command("scoring.held_out", "HeldOutOptions", "main", "draw held-out workloads"),
    "audit": Command("runner.audit", "AuditOptions", "main", "re-check the validity of finished runs"),
    "workloads": Command("workloads.listing", "ListOptions", "main", "the workloads with their targets and budgets"),
    "data download": Command("data.download", "DownloadOptions", "main", "fetch a dataset that has a public address"),
    "data synth": Command("data.synth", "SynthOptions", "main", "write small data in a dataset's own format"),
    "data generate": Command("data.generate", "GenerateOptions", "main", "make all data of the mini benchmark"),
    "data prepare": Command("data.prepare", "PrepareOptions", "main", "pack a dataset's raw files for training"),
    "data verify": Command("data.verify", "VerifyOptions", "main", "check a dataset's files"),
    "new-submission": Command(
        "optim.new_submission", "NewSubmissionOptions", "main", "write a starting point for your own"
    ),
    "check": Command(
        "runner.check", "CheckOptions", "main", "look through a submission's source for what the rules forbid"
    ),
    "sanity": Command("runner.sanity", "SanityOptions", "main", "one minute of small pathologies for an optimizer"),
    "doctor": Command("runner.hardware", "DoctorOptions", "main", "is this machine ready, and for which version?"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from algoperf_torch import __version__

        print(f"algoperf_torch {__version__}")
        return 0
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name not in COMMANDS:
        same_start = [known for known in COMMANDS if known.startswith(f"{words[0]} ")]
        if same_start and (len(words) == 1 or words[1] in ("-h", "--help")):
            print(usage(same_start))
            return 0 if len(words) > 1 else 2
        known = ", ".join(same_start or COMMANDS)
        print(f"algoperf: Unknown command {' '.join(words[:2])!r}. Must be one of: {known}.", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        import tyro

        module = import_module(f"algoperf_torch.{command.module}")
        options = tyro.cli(getattr(module, command.options), args=words[len(name.split()) :], prog=f"algoperf {name}")
        status: int = getattr(module, command.main)(options)
    except AlgoPerfError as error:
        print(f"algoperf: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return status


def usage(names: Sequence[str] | None = None) -> str:
    """The help text: one line for each command."""
    lines = [f"  {name:<16}{COMMANDS[name].help}" for name in names or COMMANDS]
    return "\n".join(
        [
            "usage: algoperf COMMAND [OPTIONS]      (algoperf COMMAND --help tells its options)",
            "",
            "AlgoPerf in PyTorch: which training algorithm reaches the target first?",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
