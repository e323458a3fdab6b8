"""Every exception that a user of the benchmark can meet.

The tree::

    AlgoPerfError                    base; the command line prints one line and exits with `exit_code`
    ├── UsageError                   the command or its arguments are wrong (2)
    │   ├── UnknownNameError         a name that is not in a registry; the message lists the known ones
    │   ├── HyperparameterError      a search space or a hyperparameter that cannot be used
    │   └── SubmissionLoadError      a submission that cannot be found, imported or built
    ├── DataError                    data that are missing, truncated, altered or out of range (2)
    ├── CheckpointError              a checkpoint that is damaged, foreign, or holds what cannot be saved (2)
    ├── HardwareMismatchError        the machine is not the one that the benchmark version names (2)
    ├── LogError                     run logs that cannot be read or scored (2)
    ├── SubmissionError              the submission raised or broke the contract while it ran (3)
    ├── DivergedError                the model's loss or metric is not a number (4)
    └── Preempted                    the process was asked to stop and has saved its state (75, EX_TEMPFAIL)

A message says what is wrong, where, and what to write instead. `TrainingComplete` is not an error: a submission raises it
from a step, as AlgoPerf submissions do, to end its trial.
"""

from collections.abc import Iterable


class AlgoPerfError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 1


class UsageError(AlgoPerfError):
    """The command or its arguments are wrong."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not in a registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"Unknown {kind} {name!r}. Must be one of: {', '.join(sorted(known))}.")


class HyperparameterError(UsageError):
    """A search space or a hyperparameter that cannot be used."""


class SubmissionLoadError(UsageError):
    """A submission that cannot be found, imported or built."""


class DataError(AlgoPerfError):
    """Data that are missing, truncated, altered or out of range."""

    exit_code = 2


class CheckpointError(AlgoPerfError):
    """A checkpoint that is damaged, belongs to another trial, or holds what cannot be saved."""

    exit_code = 2


class HardwareMismatchError(AlgoPerfError):
    """The machine is not the one that the benchmark version names."""

    exit_code = 2


class LogError(AlgoPerfError):
    """Run logs that cannot be read or scored."""

    exit_code = 2


class SubmissionError(AlgoPerfError):
    """The submission raised, or broke its contract, while it ran."""

    exit_code = 3


class DivergedError(AlgoPerfError):
    """A loss or metric of the model is not a number."""

    exit_code = 4


class Preempted(AlgoPerfError):
    """The process was asked to stop and has saved its state; the trial can be resumed."""

    exit_code = 75


class TrainingComplete(Exception):
    """Raised by a submission's step to end its trial after one last evaluation."""
