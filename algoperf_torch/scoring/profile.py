"""Performance ratios, profiles and scores (Dolan and Moré, 2002; AlgoPerf, arXiv:2306.07179, section 4.5)."""

from __future__ import annotations

import numpy as np

from algoperf_torch.scoring.table import Floats

TAU_MAX = 4.0
NUM_TAUS = 100


def taus() -> Floats:
    """The grid of the official scorer: 100 equidistant points from 1 to 4."""
    return np.linspace(1.0, TAU_MAX, NUM_TAUS)


def ratios(times: Floats, reference: int | None = None) -> Floats:
    """Each time divided by the fastest on its workload, or by that of one reference submission.

    Args:
        times: [..., submission, workload], infinite where the workload is not solved.
        reference: index of a submission; its own ratio is 1 where it solves the workload.

    Infinite where the time is; also, with a reference that does not solve a workload, 0 for those that do.
    """
    if reference is None:
        best = times.min(axis=-2, keepdims=True) if times.shape[-2] else times
    else:
        best = times[..., reference : reference + 1, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        result = times / best
    result = np.where((times == 0) & (best == 0), 1.0, result)
    return np.where(np.isinf(times), np.inf, result)


def profile(ratio: Floats, at: Floats, num_workloads: int | None = None) -> Floats:
    """Fraction of workloads that a submission solves within `at` times the fastest: [..., submission, tau].

    Args:
        num_workloads: what to divide by; default: the number of columns.
    """
    count = np.sum(ratio[..., None] <= at, axis=-2)
    result: Floats = count / (ratio.shape[-1] if num_workloads is None else num_workloads)
    return result


def official_score(ratio: Floats, num_workloads: int | None = None) -> Floats:
    """Area below the profile by the trapezoid rule on the official grid, divided by its width: [..., submission].

    The terms are added from left to right, as the official code's memory layout has it: equal to the last bit.
    """
    at = taus()
    rho = profile(ratio, at, num_workloads)
    terms = np.diff(at) * (rho[..., 1:] + rho[..., :-1]) / 2.0
    result: Floats = np.add.accumulate(terms, axis=-1)[..., -1] / (at[-1] - at[0])
    return result


def exact_score(ratio: Floats, num_workloads: int | None = None) -> Floats:
    """The same area, integrated exactly: [..., submission]."""
    result: Floats = exact_credit(ratio).sum(axis=-1) / (ratio.shape[-1] if num_workloads is None else num_workloads)
    return result


def exact_credit(ratio: Floats) -> Floats:
    """What a workload adds to the exact score: (4 - ratio) / 3, at least 0, at most 1."""
    return np.clip((TAU_MAX - ratio) / (TAU_MAX - 1), 0, 1)


def official_credit(ratio: Floats) -> Floats:
    """What a workload adds to the official score: 1 for the fastest, else (99.5 - k) / 99 where tau_k is the first >= ratio.

    In closed form, hence equal to `official_score` but for rounding.
    """
    k = np.searchsorted(taus(), ratio)
    return np.where(k == 0, 1.0, np.where(k == NUM_TAUS, 0.0, (NUM_TAUS - 0.5 - k) / (NUM_TAUS - 1)))
