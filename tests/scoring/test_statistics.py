import math

import numpy as np
import pytest

from algoperf_torch.scoring import profile
from algoperf_torch.scoring.statistics import (
    Bootstrap,
    bootstrap_scores,
    compare_times,
    doubts,
    flip_signs,
    permute_studies,
    resample_studies,
)
from algoperf_torch.scoring.times import median_over_studies

INF, NAN = math.inf, math.nan


def credit_of(times):
    return profile.exact_credit(profile.ratios(np.where(np.isnan(times), INF, times)))


def runs(rng, means, spread=0.1, workloads=4, studies=5):
    return np.exp(np.log(np.array(means))[:, None, None] + rng.normal(0, spread, (len(means), workloads, studies)))


class TestBootstrap:
    def test_equal_studies_leave_nothing_to_chance(self):
        seconds = np.repeat(np.array([[[10.0]], [[20.0]]]), 3, axis=2)
        bootstrap = bootstrap_scores(seconds, credit_of, replicates=50)
        np.testing.assert_allclose(bootstrap.over_studies, np.tile([1, 2 / 3], (50, 1)))

    def test_resampled_medians_are_medians_of_present_studies(self):
        seconds = np.array([[[1.0, 2.0, 4.0, NAN, NAN], [NAN] * 5]])
        drawn = resample_studies(seconds, 500, np.random.default_rng(0))
        assert set(drawn[:, 0, 0]) == {1.0, 2.0, 4.0}
        assert np.isnan(drawn[:, 0, 1]).all()

    def test_probabilities_of_the_resampled_median(self):
        """The median of three draws from three is the middle one with 13/27, each other one with 7/27."""
        drawn = resample_studies(np.array([[[1.0, 2.0, 3.0]]]), 20_000, np.random.default_rng(0))
        shares = [np.mean(drawn == value) for value in (1, 2, 3)]
        np.testing.assert_allclose(shares, [7 / 27, 13 / 27, 7 / 27], atol=0.01)

    def test_intervals_hold_the_score_and_widen_with_workloads(self):
        rng = np.random.default_rng(1)
        seconds = runs(rng, [10, 14]) * rng.uniform(0.6, 1.6, (2, 4, 1))
        scores = credit_of(median_over_studies(seconds)).mean(axis=-1)
        studies, both = bootstrap_scores(seconds, credit_of, replicates=2000).intervals(scores)
        assert ((studies[:, 0] <= scores) & (scores <= studies[:, 1])).all()
        assert (both[:, 1] - both[:, 0] >= studies[:, 1] - studies[:, 0] - 1e-9).all()
        assert (studies[:, 1] > studies[:, 0]).any()

    def test_is_repeatable(self):
        seconds = runs(np.random.default_rng(0), [1, 2])
        first, second = (bootstrap_scores(seconds, credit_of, replicates=20, seed=4) for _ in range(2))
        np.testing.assert_array_equal(first.over_studies_and_workloads, second.over_studies_and_workloads)

    def test_rank_shares_divide_ties(self):
        samples = np.array([[1.0, 1.0, 0.0], [0.5, 0.2, 0.1]])
        shares = Bootstrap(over_studies=samples, over_studies_and_workloads=samples).rank_shares()
        np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0, 1]])
        np.testing.assert_allclose(shares.sum(axis=0), 1)

    def test_beats(self):
        samples = np.array([[1.0, 1.0], [0.5, 0.2]])
        beats = Bootstrap(over_studies=samples, over_studies_and_workloads=samples).beats()
        np.testing.assert_allclose(beats, [[0.5, 0.75], [0.25, 0.5]])


class TestPermutations:
    def test_signs_by_hand(self):
        rng = np.random.default_rng(0)
        assert flip_signs(np.array([1.0, 1.0, 1.0]), 0, rng) == 2 / 8
        assert flip_signs(np.array([1.0, -1.0]), 0, rng) == 1.0
        assert flip_signs(np.array([0.0, 0.0]), 0, rng) == 1.0
        assert flip_signs(np.ones(20), 2000, rng) < 0.01  # drawn, not enumerated

    def test_smallest_p_value(self):
        rng = np.random.default_rng(0)
        for sizes, smallest in (((3, 3), 2 / 20), ((1, 1), 1.0), ((2, 3), 1 / 10), ((5, 5), 2 / 252)):
            a, b = np.full((1, 5), NAN), np.full((1, 5), NAN)
            a[0, : sizes[0]], b[0, : sizes[1]] = rng.normal(0, 1, sizes[0]), rng.normal(9, 1, sizes[1])
            p, bound = permute_studies(a, b, 5000, rng)
            assert bound == pytest.approx(smallest)
            assert p == pytest.approx(smallest, abs=0.02)  # as far apart as can be

    def test_no_difference(self):
        same = np.log(np.array([[10.0, 11.0, 12.0]]))
        assert permute_studies(same, same, 1000, np.random.default_rng(0))[0] == 1.0
        equal = np.zeros((2, 3))
        assert permute_studies(equal, equal, 100, np.random.default_rng(0))[0] == 1.0

    @pytest.mark.parametrize("effect", [0.0, 0.5], ids=["equal", "equal on average"])
    def test_false_alarms_are_as_rare_as_promised(self, effect):
        rng = np.random.default_rng(2)
        alarms = 0
        for seed in range(120):
            shift = rng.normal(0, effect, 6) if effect else np.zeros(6)
            shift -= shift.mean()
            a, b = rng.normal(5, 0.1, (6, 5)), rng.normal(5, 0.1, (6, 5)) + shift[:, None]
            comparison = compare_times(np.exp(a), np.exp(b), np.full(6, 1e6), replicates=300, seed=seed)
            alarms += comparison.p_studies <= 0.05
        assert alarms <= 14  # 6 expected; more than 14 has probability 0.001

    def test_difference_is_found(self):
        first, second = runs(np.random.default_rng(3), [10, 13], spread=0.1)
        comparison = compare_times(first, second, np.full(4, 1e6))
        assert comparison.decided
        assert comparison.low < comparison.speedup < comparison.high
        assert comparison.speedup == pytest.approx(1.3, rel=0.15)
        mirrored = compare_times(second, first, np.full(4, 1e6))
        assert mirrored.speedup == pytest.approx(1 / comparison.speedup)
        assert mirrored.p_studies == pytest.approx(comparison.p_studies, abs=0.01)

    def test_infinite_times_and_missing_workloads(self):
        first = np.array([[10.0, 11.0, 12.0], [NAN, NAN, NAN]])
        second = np.array([[INF, INF, INF], [1.0, 1.0, 1.0]])
        comparison = compare_times(first, second, np.array([100.0, 100.0]))
        assert comparison.workloads == 1
        assert comparison.speedup == pytest.approx(101 / 11)
        with pytest.raises(ValueError, match="no workload on which both"):
            compare_times(first[1:], second[:1], np.array([100.0]))

    def test_median_and_mean_that_disagree_decide_nothing(self):
        first, second = np.array([[10.0, 10.0, 10.0, 1e6, 1e6]]), np.array([[11.0, 11.0, 11.0, 11.0, 11.0]])
        comparison = compare_times(first, second, np.array([1e7]))
        assert comparison.speedup > 1 > comparison.mean_speedup
        assert not comparison.decided


class TestDoubts:
    def tell(self, seconds, names=("a", "b")):
        scores = credit_of(median_over_studies(seconds)).mean(axis=-1)
        bootstrap = bootstrap_scores(seconds, credit_of, replicates=500)
        return " ".join(doubts(names, scores, seconds, bootstrap))

    def test_clear_data_raise_none(self):
        assert self.tell(runs(np.random.default_rng(0), [10, 20], spread=0.01)) == ""

    def test_one_submission(self):
        assert "not a ranking" in self.tell(runs(np.random.default_rng(0), [10]), ("a",))

    def test_few_studies_and_workloads(self):
        rng = np.random.default_rng(0)
        assert "nothing is known about luck" in self.tell(runs(rng, [10, 20], studies=1))
        assert "Two studies" in self.tell(runs(rng, [10, 20], studies=2))
        assert "One workload: the ranking" in self.tell(runs(rng, [10, 20], workloads=1))

    def test_overlap(self):
        assert "is not settled" in self.tell(runs(np.random.default_rng(0), [10, 10.1], spread=0.3))

    def test_missing_and_equal(self):
        seconds = runs(np.random.default_rng(0), [10, 20])
        seconds[1, 0] = NAN
        assert "not solved: b" in self.tell(seconds)
        assert "Equal scores: a and b" in self.tell(np.ones((2, 4, 3)))
