"""How far to believe a ranking: bootstrap intervals, permutation tests, stability of ranks.

Studies are resampled because a run repeated with other seeds gives another time; workloads, because another choice of them
gives another benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.scoring.speedup import censored
from algoperf_torch.scoring.table import Floats
from algoperf_torch.scoring.times import median_over_studies

LEVEL = 0.95
SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """Scores of resampled benchmarks: [replicate, submission]."""

    over_studies: Floats
    over_studies_and_workloads: Floats

    def intervals(self, scores: Floats) -> tuple[Floats, Floats]:
        """Bounds of the central 95 % over studies alone, and over studies and workloads: each [submission, 2].

        They include the score itself: with few studies a resampled median can miss it.
        """
        return _bounds(self.over_studies, scores), _bounds(self.over_studies_and_workloads, scores)

    def rank_shares(self) -> Floats:
        """Share of replicates over studies in which a submission has each rank, ties divided: [submission, rank]."""
        replicates, number = self.over_studies.shape
        shares = np.zeros((number, number))
        for s in range(number):
            own = self.over_studies[:, s : s + 1]
            better = np.sum(self.over_studies > own, axis=1)
            equal = np.sum(self.over_studies == own, axis=1)  # with itself
            for rank in range(number):
                shares[s, rank] = np.sum(((better <= rank) & (rank < better + equal)) / equal) / replicates
        return shares

    def beats(self) -> Floats:
        """Share of replicates over studies in which the first submission's score is higher, ties half: [first, second]."""
        first, second = self.over_studies[:, :, None], self.over_studies[:, None, :]
        result: Floats = np.mean((first > second) + 0.5 * (first == second), axis=0)
        return result


def _bounds(samples: Floats, value: Floats) -> Floats:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.stack([np.minimum(low, value), np.maximum(high, value)], axis=-1)


def resample_studies(seconds: Floats, replicates: int, rng: np.random.Generator) -> Floats:
    """Median times of benchmarks whose studies are drawn with replacement from those present.

    Args:
        seconds: [submission, workload, study]; NaN where there is no result.

    Returns:
        [replicate, submission, workload].
    """
    ordered = np.sort(seconds, axis=-1)  # NaN comes last
    count = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    draws = np.floor(rng.random((replicates, *seconds.shape)) * count).astype(np.intp)
    drawn = np.take_along_axis(ordered[None], draws, axis=-1)
    drawn[np.broadcast_to(np.arange(seconds.shape[-1]) >= count, drawn.shape)] = np.nan
    return median_over_studies(drawn)


def bootstrap_scores(
    seconds: Floats, credits: Callable[[Floats], Floats], *, replicates: int, seed: int = 0
) -> Bootstrap:
    """Scores of resampled benchmarks.

    Args:
        seconds: [submission, workload, study].
        credits: what each base workload adds to each score, from times [..., submission, workload]; the score is their mean.
    """
    rng = np.random.default_rng(seed)
    credit = credits(resample_studies(seconds, replicates, rng))
    number = credit.shape[-1]
    weights = rng.multinomial(number, np.full(number, 1 / number), size=replicates) / number
    return Bootstrap(
        over_studies=credit.mean(axis=-1),
        over_studies_and_workloads=np.einsum("rsw,rw->rs", credit, weights),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Is one submission faster than another? The ratio is second's time / first's: above 1 the first is faster."""

    speedup: float  # geometric mean over the workloads on which both have results
    mean_speedup: float  # the same from means of logarithms instead of medians over studies
    low: float
    high: float  # bounds of the central 95 % of resampled studies
    workloads: int
    studies: int  # of the workload that has most, of either submission
    p_studies: float  # permutation of studies between the two, within workloads: these workloads, other seeds
    p_studies_smallest: float  # the smallest that so few studies could give
    p_workloads: float  # paired, signs of the workloads' logarithmic ratios: other workloads
    p_workloads_smallest: float

    @property
    def decided(self) -> bool:
        """Whether the data show a difference; never where medians and means, on which the test rests, disagree about who."""
        return self.p_studies <= SIGNIFICANCE and (self.speedup > 1) == (self.mean_speedup > 1)


def compare_times(
    first: Floats, second: Floats, budgets: Floats, *, replicates: int = 10_000, seed: int = 0
) -> Comparison:
    """Compares two submissions by their times per study.

    Args:
        first, second: [workload, study]; NaN where there is no result, infinite where the target was not reached.
        budgets: [workload]; what an infinite time counts as, and one second.

    Raises `ValueError` where there is no workload on which both have results.
    """
    both = ~np.isnan(first).all(axis=-1) & ~np.isnan(second).all(axis=-1)
    if not both.any():
        raise ValueError("no workload on which both submissions have results")
    a = np.log(censored(first[both], budgets[both, None]))
    b = np.log(censored(second[both], budgets[both, None]))
    ratios = median_over_studies(b) - median_over_studies(a)
    rng = np.random.default_rng(seed)
    p_studies, smallest = permute_studies(a, b, replicates, rng)
    p_workloads = flip_signs(ratios, replicates, rng)
    drawn = resample_studies(np.stack([a, b]), replicates, rng)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]).mean(axis=-1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(ratios.mean())
    return Comparison(
        speedup=float(np.exp(mean)),
        mean_speedup=float(np.exp(np.mean(_mean_over_studies(b)[0] - _mean_over_studies(a)[0]))),
        low=float(np.exp(min(low, mean))),
        high=float(np.exp(max(high, mean))),
        workloads=int(both.sum()),
        studies=int(max((~np.isnan(times)).sum(axis=-1).max() for times in (a, b))),
        p_studies=p_studies,
        p_studies_smallest=smallest,
        p_workloads=p_workloads,
        p_workloads_smallest=min(1.0, 2.0 ** (1 - len(ratios))),
    )


def permute_studies(a: Floats, b: Floats, replicates: int, rng: np.random.Generator) -> tuple[float, float]:
    """Two-sided p-value of the mean over workloads of the difference of means, studies exchanged within workloads.

    The difference is divided by its standard error, so that the test stays right where the two differ on single workloads
    but not on average (Janssen, 1997; Chung and Romano, 2013). With medians it would not.

    Args:
        a, b: [workload, study] logarithms of times, NaN where there is no result, at least one in each row.

    Returns:
        The p-value, and the smallest that this number of studies can give.
    """
    pooled = np.concatenate([a, b], axis=-1)
    observed = abs(_studentized(a, b))
    present = ~np.isnan(pooled)
    keys = rng.random((replicates, *pooled.shape))
    keys[:, ~present] = 2.0  # no result stays behind those that are there
    shuffled = np.take_along_axis(np.broadcast_to(pooled, keys.shape), np.argsort(keys, axis=-1), axis=-1)
    size = np.sum(~np.isnan(a), axis=-1)[:, None]
    position = np.arange(pooled.shape[-1])
    one = np.where(position < size, shuffled, np.nan)
    other = np.where(position >= size, shuffled, np.nan)
    extreme = np.sum(np.abs(_studentized(one, other)) >= observed * (1 - 1e-9))
    arrangements = 1.0
    for total, own in zip(present.sum(axis=-1), size[:, 0], strict=True):
        arrangements *= math.comb(int(total), int(own))
    mirrored = (
        2 if (2 * size[:, 0] == present.sum(axis=-1)).all() else 1
    )  # exchanging the two gives the same difference
    return float((extreme + 1) / (replicates + 1)), min(1.0, max(mirrored / arrangements, 1 / (replicates + 1)))


def _studentized(a: Floats, b: Floats) -> Floats:
    """Sum over workloads of the difference of means over studies, in units of its standard error: [...]."""
    mean_a, variance_a = _mean_over_studies(a)
    mean_b, variance_b = _mean_over_studies(b)
    variance = np.sum(variance_a + variance_b, axis=-1)
    result: Floats = np.sum(mean_b - mean_a, axis=-1) / np.sqrt(variance + 1e-18)  # times can be equal in all studies
    return result


def _mean_over_studies(values: Floats) -> tuple[Floats, Floats]:
    """Mean over the last axis, NaN left out, and the estimated variance of it (0 for a single value)."""
    present = ~np.isnan(values)
    count = present.sum(axis=-1)
    mean = np.where(present, values, 0.0).sum(axis=-1) / count
    squares = np.where(present, (values - mean[..., None]) ** 2, 0.0).sum(axis=-1)
    return mean, squares / (np.maximum(count - 1, 1) * count)


def flip_signs(differences: Floats, replicates: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of the mean of paired differences under random signs; exact for up to 12 pairs."""
    number = len(differences)
    signs: NDArray[np.int_]
    if number <= 12:
        signs = 1 - 2 * ((np.arange(2**number)[:, None] >> np.arange(number)) & 1)
        means = np.abs(signs @ differences)
        return float(np.mean(means >= abs(differences.sum()) * (1 - 1e-9)))
    signs = rng.choice(np.array([-1, 1]), size=(replicates, number))
    extreme = np.sum(np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9))
    return float((extreme + 1) / (replicates + 1))


def doubts(submissions: tuple[str, ...], scores: Floats, seconds: Floats, bootstrap: Bootstrap | None) -> list[str]:
    """Why the data cannot support the ranking by score, in sentences; empty where they can.

    Args:
        seconds: [submission, workload, study] of the base workloads.
    """
    found = []
    if len(submissions) < 2:
        return ["One submission alone: its score is the fraction of workloads that it solves, not a ranking."]
    counts = np.sum(~np.isnan(seconds), axis=-1)
    if counts.max(initial=0) < 2:
        found.append("One study per workload: nothing is known about luck, and no interval can be given.")
    elif counts.max(initial=0) < 3:
        found.append("Two studies per workload: intervals are rough.")
    if seconds.shape[1] < 3:
        number = "One workload" if seconds.shape[1] == 1 else f"{seconds.shape[1]} workloads"
        found.append(f"{number}: the ranking says nothing about others.")
    missing = [name for name, row in zip(submissions, counts, strict=True) if (row == 0).any()]
    if missing:
        found.append(f"No result on some workloads, which counts as not solved: {', '.join(missing)}.")
    order = np.argsort(-scores, kind="stable")
    ties = [f"{submissions[i]} and {submissions[j]}" for i, j in pairwise(order) if scores[i] == scores[j]]
    if ties:
        found.append(f"Equal scores: {'; '.join(ties)}.")
    if bootstrap is not None and counts.max(initial=0) > 1:
        wins = bootstrap.beats()
        for i, j in pairwise(order):
            if scores[i] > scores[j] and wins[i, j] < LEVEL:
                found.append(
                    f"{submissions[i]} before {submissions[j]} is not settled: their order holds in "
                    f"{wins[i, j]:.0%} of resampled studies."
                )
    return found
