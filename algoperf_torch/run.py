"""Runs one trial: `torchrun --standalone --nproc_per_node=2 -m algoperf_torch.run --workload digits --submission nadamw`.

Without torchrun it is one rank. The exit status is 0 for a trial that ran to an end of its own, whether or not it reached
its target; 2 for a mistake in the command, the data or the machine; 3 for a submission that failed; 4 for one that
diverged; 75 for a trial that was stopped and can go on; 1 for an error of the harness.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, runs the trial, and returns the exit status."""
    import tyro

    from algoperf_torch.errors import AlgoPerfError
    from algoperf_torch.runner.options import RunOptions

    try:
        options = tyro.cli(RunOptions, args=arguments, prog="python -m algoperf_torch.run")
        from algoperf_torch.runner import hardware

        hardware.use_huge_pages()
        from algoperf_torch.runner.execute import execute

        return execute(options)
    except AlgoPerfError as error:
        if os.environ.get("RANK", "0") == "0":  # what is wrong before the start is wrong on all ranks: told once
            print(f"algoperf: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
