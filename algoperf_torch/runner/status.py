"""How a trial can end, and which ends are a miss of the algorithm and which void the trial (to be run again)."""

from __future__ import annotations

import enum


class Status(enum.StrEnum):
    RUNNING = "running"
    REACHED = "reached"  # the validation target was met within the budget
    BUDGET_EXHAUSTED = "budget_exhausted"  # the trial used up its budget or its steps, or the submission ended it
    DIVERGED = "diverged"  # a metric is not a number
    SUBMISSION_ERROR = "submission_error"  # the submission raised, hung or ended the process
    OUT_OF_MEMORY = "out_of_memory"
    PREEMPTED = "preempted"  # the process was asked to stop or killed from outside; it can be resumed
    DATA_ERROR = "data_error"
    HARNESS_ERROR = "harness_error"


class Phase(enum.IntEnum):
    """What a trial is doing; the heartbeat file tells it to whoever finds the process dead."""

    SETUP = 0
    INIT = 1  # the submission is being built
    TRAINING = 2  # the clock runs
    EVALUATION = 3
    CHECKPOINT = 4
    FINISHED = 5


TIMED_PHASES = frozenset({Phase.INIT, Phase.TRAINING})  # what happens here is the submission's doing


def is_void(status: Status, phase: Phase) -> bool:
    """Whether a trial that ended so in this phase says nothing about the algorithm and is to be run again."""
    if status is Status.OUT_OF_MEMORY:
        return phase not in TIMED_PHASES
    return status in (Status.RUNNING, Status.PREEMPTED, Status.DATA_ERROR, Status.HARNESS_ERROR)
