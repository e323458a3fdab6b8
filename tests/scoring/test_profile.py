import math

import numpy as np
import pytest

from algoperf_torch.scoring import profile
from algoperf_torch.scoring.speedup import censored, speedups

INF = math.inf


def test_grid():
    at = profile.taus()
    assert (at[0], at[-1], len(at)) == (1.0, 4.0, 100)


def test_ratios_are_to_the_fastest():
    ratios = profile.ratios(np.array([[10.0, INF, INF], [20.0, 5.0, INF]]))
    np.testing.assert_array_equal(ratios, [[1, INF, INF], [2, 1, INF]])


def test_ratios_to_a_reference():
    times = np.array([[10.0, INF, 0.0], [20.0, 5.0, 0.0]])
    np.testing.assert_array_equal(profile.ratios(times, 1), [[0.5, INF, 1], [1, 1, 1]])
    np.testing.assert_array_equal(
        profile.ratios(times, 0), [[1, INF, 1], [2, 0, 1]]
    )  # 0 at once solves what it does not


def test_times_of_zero():
    np.testing.assert_array_equal(profile.ratios(np.array([[0.0], [0.0], [1.0]])), [[1], [1], [INF]])


@pytest.mark.parametrize(
    ("ratio", "official", "exact"),
    [
        (1.0, 1.0, 1.0),
        (1.001, 98.5 / 99, (4 - 1.001) / 3),
        (4.0, 0.5 / 99, 0.0),
        (4.0001, 0.0, 0.0),
        (INF, 0.0, 0.0),
        (2.5, (99.5 - 50) / 99, 0.5),
        (0.5, 1.0, 1.0),  # faster than a reference
    ],
)
def test_credit_of_a_workload(ratio, official, exact):
    assert profile.official_credit(np.array([ratio]))[0] == pytest.approx(official)
    assert profile.exact_credit(np.array([ratio]))[0] == pytest.approx(exact)
    assert profile.official_score(np.array([[ratio]]))[0] == pytest.approx(official)
    assert profile.exact_score(np.array([[ratio]]))[0] == pytest.approx(exact)


def test_scores_divide_by_the_workloads_of_the_version():
    ratios = np.array([[1.0, 1.0]])
    assert profile.official_score(ratios, 8)[0] == pytest.approx(2 / 8)
    assert profile.exact_score(ratios, 8)[0] == 2 / 8
    assert profile.profile(ratios, np.array([1.0]), 8)[0, 0] == 2 / 8


class TestSpeedups:
    def test_geometric_mean_of_reference_over_own(self):
        times = np.array([[10.0, 10.0], [5.0, 20.0], [5.0, 5.0]])
        np.testing.assert_allclose(speedups(times, 0, np.array([100.0, 100.0])), [1, 1, 2])

    def test_not_reached_counts_as_the_budget_and_a_second(self):
        times = np.array([[10.0], [INF]])
        np.testing.assert_allclose(speedups(times, 0, np.array([100.0])), [1, 10 / 101])
        np.testing.assert_allclose(speedups(times, 1, np.array([100.0])), [101 / 10, 1])

    def test_missing_logs_give_no_number(self):
        assert math.isnan(speedups(np.array([[10.0], [math.nan]]), 0, np.array([100.0]))[1])

    def test_zero_seconds(self):
        assert np.isfinite(np.log(censored(np.array([0.0]), np.array([1.0])))).all()
