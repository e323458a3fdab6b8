import math

import numpy as np
import pytest

from algoperf_torch.scoring.voiding import Void, void_times

INF, NAN = math.inf, math.nan


def void(rows, num_base=1, partners=(0,)):
    times, codes = void_times(np.array(rows, dtype=float), num_base, partners)
    return times.tolist(), codes.tolist()


def test_exactly_four_times_stays():
    times, codes = void([[1.0], [4.0], [np.nextafter(4.0, 5.0)]], partners=())
    assert times == [[1.0], [4.0], [INF]]
    assert codes == [[Void.NO], [Void.NO], [Void.TOO_SLOW]]


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ([10.0, 10.0], Void.NO),
        ([INF, 10.0], Void.NOT_REACHED),
        ([NAN, 10.0], Void.NO_LOGS),
        ([10.0, INF], Void.HELD_OUT_NOT_REACHED),
        ([10.0, NAN], Void.HELD_OUT_NOT_REACHED),
        ([10.0, 41.0], Void.HELD_OUT_TOO_SLOW),
        ([10.0, 40.0], Void.NO),
        ([41.0, 10.0], Void.TOO_SLOW),
        ([41.0, INF], Void.TOO_SLOW),
    ],
)
def test_conditions_of_a_base_time(row, code):
    times, codes = void([[10.0, 10.0], row])
    assert codes[1] == [code]
    assert math.isfinite(times[1][0]) == (code == Void.NO)


def test_only_those_that_reach_the_base_target_are_fastest_on_the_held_out_one():
    times, _ = void([[INF, 1.0], [10.0, 30.0], [10.0, 119.0]])
    assert times == [[INF], [10.0], [10.0]]


def test_a_submission_that_is_voided_itself_can_make_another_too_slow():
    times, codes = void([[1.0, INF], [5.0, 5.0]])
    assert times == [[INF], [INF]]
    assert codes == [[Void.HELD_OUT_NOT_REACHED], [Void.TOO_SLOW]]


def test_one_base_may_have_several_held_out_workloads_and_another_none():
    rows = [[10, 10, 10, 10], [10, 10, 10, 50]]
    times, codes = void(rows, num_base=2, partners=(0, 0))
    assert times == [[10, 10], [INF, 10]]
    assert codes[1] == [Void.HELD_OUT_TOO_SLOW, Void.NO]


def test_leading_axes():
    rng = np.random.default_rng(0)
    times = np.where(rng.random((20, 4, 5)) < 0.3, INF, rng.uniform(1, 8, (20, 4, 5)))
    together, codes = void_times(times, 3, (0, 2))
    for one, expected, code in zip(times, together, codes, strict=True):
        np.testing.assert_array_equal(void_times(one, 3, (0, 2))[0], expected)
        np.testing.assert_array_equal(void_times(one, 3, (0, 2))[1], code)


def test_input_is_left_alone():
    times = np.array([[1.0, NAN], [9.0, 1.0]])
    before = times.copy()
    void_times(times, 1, (0,))
    np.testing.assert_array_equal(times, before)
    assert not np.isnan(void_times(times, 1, (0,))[0]).any()


def test_every_code_has_a_sentence():
    assert all(code.explain("h") for code in Void if code)
    assert "ogbg_gelu" in Void.HELD_OUT_TOO_SLOW.explain("ogbg_gelu")
