"""Mean average precision over tasks whose labels are partly missing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Sum over distinct scores, highest first, of the precision times the increase in recall. NaN without positives."""
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # rows with equal scores form one threshold
    hits = np.cumsum(labels)[last] if len(scores) else np.zeros(0)
    if not len(hits) or hits[-1] == 0:
        return float("nan")
    precision = hits / (last + 1)
    return float(np.sum(precision * np.diff(hits, prepend=0)) / hits[-1])


def mean_average_precision(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], weights: NDArray[np.bool_]
) -> float:
    """Mean of the tasks' average precisions over their weighted rows; all arguments [rows, tasks].

    A task counts if its column holds a 0 and a 1 *before* masking, as the reference has it: missing labels and padding are
    stored as 0, so a task whose known labels are all positive counts with 1. NaN where no task counts.
    """
    values = [
        average_precision(scores[weights[:, task], task], labels[weights[:, task], task])
        for task in range(labels.shape[1])
        if labels[:, task].any() and not labels[:, task].all()
    ]
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
