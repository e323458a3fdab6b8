import math

import numpy as np
import pytest

from algoperf_torch.scoring.logs import Trial
from algoperf_torch.scoring.table import Table
from algoperf_torch.scoring.times import (
    documented_study_result,
    first_hit,
    median_over_studies,
    official_study_result,
)
from algoperf_torch.spec import Target

ACCURACY = Target("accuracy", 0.9)
WER = Target("wer", 0.1)


def make_trial(number, seconds, values, target=ACCURACY, **more):
    columns = ("global_step", "score", f"validation/{target.metric}")
    steps = np.arange(1, len(seconds) + 1) * 100
    table = Table(columns, np.column_stack([steps, seconds, values]).astype(float))
    return Trial(
        submission="alpha", study=0, workload="w", framework="jax", number=number, path="x", evaluations=table, **more
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "target", "row"),
    [
        ([0.1, 0.9, 0.95], ACCURACY, 1),  # equal counts
        ([0.1, 0.8], ACCURACY, None),
        ([0.3, 0.1, 0.05], WER, 1),
        ([math.nan, 0.9], ACCURACY, 1),
        ([math.nan, math.nan], WER, None),
        ([math.inf, 0.0], ACCURACY, 0),
        ([], ACCURACY, None),
    ],
)
def test_first_hit(values, target, row):
    assert first_hit(np.array(values), target) == row


def test_only_the_official_rule_is_content_with_the_target_itself():
    assert first_hit(np.array([0.9, 0.91]), ACCURACY, strict=True) == 1
    assert first_hit(np.array([0.1, 0.05, math.nan]), WER, strict=True) == 1
    trials = [make_trial(1, [10, 20], [0.9, 0.91])]
    assert official_study_result(trials, ACCURACY).seconds == 10
    assert documented_study_result(trials, ACCURACY, None).seconds == 20


def test_official_rule_takes_the_lowest_index_not_the_smallest_time():
    slow = make_trial(1, [50, 100], [0.0, 0.91])
    fast = make_trial(2, [10, 20, 30], [0.0, 0.0, 0.91])
    official, documented = (
        official_study_result([slow, fast], ACCURACY),
        documented_study_result([slow, fast], ACCURACY, None),
    )
    assert (official.seconds, official.trial.number, official.row, official.steps) == (100, 1, 1, 200)
    assert (documented.seconds, documented.trial.number, documented.row, documented.steps) == (30, 2, 2, 300)


def test_ties_of_the_index_go_to_the_lower_trial_number():
    trials = [make_trial(1, [100], [0.91]), make_trial(2, [50], [0.91])]
    assert official_study_result(trials, ACCURACY).seconds == 100
    assert documented_study_result(trials, ACCURACY, None).seconds == 50


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_documented_rule_takes_the_smallest_time_however_close(order):
    trials = [make_trial(number, [seconds], [0.91]) for number, seconds in ((1, 50.0), (2, 49.9), (3, 50.1))]
    assert documented_study_result([trials[i] for i in order], ACCURACY, None).seconds == 49.9


def test_nobody_reaches():
    trials = [make_trial(1, [100], [0.5])]
    for result in (official_study_result(trials, ACCURACY), documented_study_result(trials, ACCURACY, None)):
        assert math.isinf(result.seconds)
        assert math.isinf(result.steps)


def test_trials_without_evaluations():
    nothing = make_trial(1, [], [])
    absent = Trial(submission="a", study=0, workload="w", framework="jax", number=2, path="x", evaluations=None)
    assert math.isinf(official_study_result([nothing, absent], ACCURACY).seconds)
    assert math.isnan(official_study_result([absent], ACCURACY).seconds)
    assert math.isinf(documented_study_result([absent], ACCURACY, None).seconds)


def test_hits_beyond_the_budget_count_for_the_official_rule_only():
    trials = [make_trial(1, [50, 100], [0.5, 0.91])]
    assert official_study_result(trials, ACCURACY).seconds == 100
    assert documented_study_result(trials, ACCURACY, 100.0).seconds == math.inf  # the budget itself is beyond it
    assert documented_study_result(trials, ACCURACY, 100.5).seconds == 100


def test_one_void_trial_leaves_the_study_without_a_result():
    trials = [make_trial(1, [50], [0.91]), make_trial(2, [60], [0.0], unusable="void (data_error)")]
    result = documented_study_result(trials, ACCURACY, None)
    assert math.isnan(result.seconds)
    assert result.why == "trial 2: void (data_error)"
    assert official_study_result(trials, ACCURACY).seconds == 50


def test_irregular_trials_are_left_out():
    trials = [make_trial(1, [50], [0.91]), make_trial(2, [10], [0.91], irregular="a copy")]
    result = documented_study_result(trials, ACCURACY, None)
    assert result.seconds == 50
    assert result.why == "trial 2 left out: a copy"


@pytest.mark.parametrize(
    ("studies", "median"),
    [
        ([1, 2, 3, 4, 5], 3),
        ([1, 2, 3, math.inf, math.inf], 3),  # three of five must succeed
        ([1, 2, math.inf, math.inf, math.inf], math.inf),
        ([1, 2, math.inf], 2),  # two of three
        ([1, math.inf, math.inf], math.inf),
        ([1, 2, 3, 4], 2.5),
        ([1, 2, math.inf, math.inf], math.inf),
        ([1, math.inf], math.inf),
        ([3, math.nan, 1], 2),
        ([7, math.nan, math.nan], 7),
        ([math.nan, math.nan], math.nan),
        ([5], 5),
        ([math.nan], math.nan),
    ],
)
def test_median_over_studies(studies, median):
    np.testing.assert_equal(median_over_studies(np.array(studies, dtype=float)), median)
    np.testing.assert_equal(median_over_studies(np.array(studies, dtype=float)[::-1]), median)
