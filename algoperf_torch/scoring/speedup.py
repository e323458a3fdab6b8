"""How many times faster than a reference: geometric means of ratios of times (or steps) over workloads."""

from __future__ import annotations

import numpy as np

from algoperf_torch.scoring.table import Floats


def speedups(times: Floats, reference: int, budgets: Floats) -> Floats:
    """Geometric mean over workloads of reference time / time; above 1 is faster than the reference.

    Args:
        times: [..., submission, workload] without any voiding; NaN where there are no logs.
        reference: index of the reference submission.
        budgets: seconds per workload; a target that was not reached counts as the budget and one second.

    Returns:
        [..., submission]; NaN where either has no logs on a workload. (The official code gives the inverse.)
    """
    logarithms = np.log(censored(times, budgets))
    result: Floats = np.exp(np.mean(logarithms[..., reference : reference + 1, :] - logarithms, axis=-1))
    return result


def censored(times: Floats, budgets: Floats) -> Floats:
    """Times with infinity replaced by the budget and one second; at least a microsecond, so that logarithms exist."""
    return np.maximum(np.where(np.isinf(times), budgets + 1.0, times), 1e-6)
