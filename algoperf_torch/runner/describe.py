"""What `algoperf tune` must know of a submission before it starts, and checks: runs in a process of its own.

`python -m algoperf_torch.runner.describe OUTPUT STUDIES [options of algoperf_torch.run]` writes a JSON object to OUTPUT:
`name`, `digest`, and `points`, the hyperparameters of every trial of each study in STUDIES (0,1,...); or `error`. The
supervisor itself imports neither torch nor any code of a submission.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from algoperf_torch.errors import AlgoPerfError, HyperparameterError
from algoperf_torch.runner.options import RunOptions


def describe(options: RunOptions, studies: Sequence[int]) -> dict[str, Any]:
    """Loads the submission. Raises `AlgoPerfError` where that, or finding its points, fails."""
    from algoperf_torch.runner.build import hyperparameters_of
    from algoperf_torch.runner.submissions import load_submission
    from algoperf_torch.versions import load_version

    version = load_version(options.version)
    submission = load_submission(options.submission, schedule=options.schedule)
    has_space = options.search_space is not None or submission.search_space is not None
    most = version.num_trials(options.ruleset) if has_space and not options.hparams else 1

    def points(study: int) -> list[dict[str, Any]]:
        found = []
        for trial in range(1, most + 1):
            try:
                point = hyperparameters_of(replace(options, study=study, trial=trial), submission, version)
            except HyperparameterError:
                if trial == 1:
                    raise
                break  # the space has fewer points than a study may have trials
            submission.algorithm.check_hyperparameters(point)
            found.append(dict(point))
        return found

    return {
        "name": options.name or submission.name,
        "digest": submission.digest,
        "points": {str(study): points(study) for study in studies},
    }


def main(arguments: Sequence[str]) -> int:
    import tyro

    output, studies, *rest = arguments
    try:
        found = describe(tyro.cli(RunOptions, args=rest), [int(study) for study in studies.split(",")])
    except AlgoPerfError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    Path(output).write_text(json.dumps(found, default=str), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
