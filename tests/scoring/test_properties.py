"""What must hold for any times: over arrays from 1 to 6 submissions, 1 to 5 base workloads, some held out, up to 5 studies."""

import math

import numpy as np
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from algoperf_torch.scoring import profile
from algoperf_torch.scoring.logs import Trial
from algoperf_torch.scoring.speedup import speedups
from algoperf_torch.scoring.statistics import compare_times
from algoperf_torch.scoring.table import Table
from algoperf_torch.scoring.times import documented_study_result, median_over_studies, official_study_result
from algoperf_torch.scoring.voiding import Void, void_times
from algoperf_torch.spec import Target

INF = math.inf


def holds(*arguments):
    """As `given`, with examples for half a second and no limit for a busy machine."""
    return lambda test: settings(max_examples=50, deadline=None)(given(*arguments)(test))


some_time = st.one_of(
    st.sampled_from([1.0, 2.0, 4.0, 8.0, INF, math.nan]),  # ties and factors of exactly 4 are common
    st.floats(0.001, 1e6, allow_nan=False),
)
finite_time = st.floats(0.001, 1e6)


@st.composite
def problems(draw, times=some_time, min_submissions=1):
    """(times, number of base workloads, partners of the held-out ones)."""
    submissions, base = draw(st.integers(min_submissions, 6)), draw(st.integers(1, 5))
    partners = draw(st.lists(st.integers(0, base - 1), max_size=3, unique=True))
    width = base + len(partners)
    rows = draw(st.lists(st.lists(times, min_size=width, max_size=width), min_size=submissions, max_size=submissions))
    return np.array(rows), base, tuple(partners)


def score(times, base, partners):
    """(ratios, official scores, exact scores) after all rules."""
    after, _ = void_times(times, base, partners)
    ratios = profile.ratios(after)
    return ratios, profile.official_score(ratios), profile.exact_score(ratios)


def slower_than_all(times, factor):
    """A submission that is slower than every other one that reaches a target, on every workload."""
    slowest = np.max(np.where(np.isfinite(times), times, 0.0), axis=0)
    return np.where(slowest > 0, slowest * factor, INF)


@holds(problems())
def test_scores_lie_between_zero_and_one(problem):
    ratios, official, exact = score(*problem)
    assert not np.isnan(ratios).any()
    assert (ratios >= 1).all()
    for scores in (official, exact):
        assert ((scores >= 0) & (scores <= 1 + 1e-12)).all()


@holds(problems())
def test_profiles_are_monotone_and_end_at_the_fraction_solved(problem):
    ratios, _, _ = score(*problem)
    rho = profile.profile(ratios, profile.taus())
    assert (np.diff(rho, axis=1) >= 0).all()
    after, codes = void_times(*problem)
    assert (rho[:, -1] <= np.isfinite(after).mean(axis=1) + 1e-12).all()  # a base time voided later can be the fastest
    np.testing.assert_array_equal(np.isfinite(after), codes == Void.NO)


@holds(problems())
def test_somebody_is_fastest_wherever_anybody_is_finite(problem):
    ratios, _, _ = score(*problem)
    for column in ratios.T:
        assert (column == 1).any() or np.isinf(column).all()


@holds(problems())
def test_the_two_integrals_differ_by_less_than_half_a_grid_step(problem):
    ratios, official, exact = score(*problem)
    assert (np.abs(official - exact) <= 0.5 / 99 + 1e-12).all()
    np.testing.assert_allclose(profile.official_credit(ratios).mean(axis=1), official, atol=1e-12)
    np.testing.assert_allclose(profile.exact_credit(ratios).mean(axis=1), exact, atol=1e-12)


@holds(problems())
def test_exact_score_is_the_integral_of_the_profile(problem):
    ratios, _, exact = score(*problem)
    at = np.linspace(1, 4, 30_001)
    fine = np.trapezoid(profile.profile(ratios, at), at, axis=1) / 3
    np.testing.assert_allclose(exact, fine, atol=1e-3)


@holds(problems())
def test_scores_are_multiples_of_the_grid(problem):
    _, official, _ = score(*problem)
    whole = official * 2 * 99 * problem[1]
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-6)


@holds(problems(), st.randoms(use_true_random=False))
def test_order_of_submissions_and_workloads_does_not_matter(problem, random):
    times, base, partners = problem
    ratios, official, exact = score(*problem)
    rows = random.sample(range(len(times)), len(times))
    shuffled = score(times[rows], base, partners)
    np.testing.assert_array_equal(shuffled[0], ratios[rows])
    np.testing.assert_array_equal(shuffled[1], official[rows])
    columns = random.sample(range(base), base)
    held = random.sample(range(len(partners)), len(partners))
    moved = times[:, [*columns, *(base + h for h in held)]]
    again = score(moved, base, tuple(columns.index(partners[h]) for h in held))
    np.testing.assert_array_equal(again[0], ratios[:, columns])
    np.testing.assert_allclose(again[1], official, atol=1e-12)
    np.testing.assert_allclose(again[2], exact, atol=1e-12)


@holds(problems(), st.integers(-20, 20))
def test_scaling_all_times_changes_nothing(problem, power):
    times, base, partners = problem
    for before, after in zip(score(*problem), score(times * 2.0**power, base, partners), strict=True):
        np.testing.assert_array_equal(before, after)


@holds(problems(), st.integers(-20, 20), st.data())
def test_scaling_one_workload_changes_nothing(problem, power, data):
    times, base, partners = problem
    scaled = times.copy()
    scaled[:, data.draw(st.integers(0, times.shape[1] - 1))] *= 2.0**power
    for before, after in zip(score(*problem), score(scaled, base, partners), strict=True):
        np.testing.assert_array_equal(before, after)


@holds(problems(), st.floats(1.0, 10.0))
def test_a_slower_submission_changes_nobody_else(problem, factor):
    times, base, partners = problem
    ratios, official, exact = score(*problem)
    more = score(np.vstack([times, slower_than_all(times, factor)]), base, partners)
    for before, after in zip((ratios, official, exact), more, strict=True):
        np.testing.assert_array_equal(after[:-1], before)


@holds(problems(), st.lists(some_time, min_size=8, max_size=8))
def test_a_new_submission_changes_no_ratio_on_base_workloads_that_it_did_not_win(problem, new):
    """Where it is slower on the held-out partner, too, than those who reach the target of the base workload."""
    times, base, partners = problem
    row = np.array(new[: times.shape[1]])
    counted = times.copy()
    for h, b in enumerate(partners):
        counted[~np.isfinite(times[:, b]), base + h] = INF
    fastest = np.fmin.reduce(counted, axis=0)
    won = row < fastest
    after, _ = void_times(np.vstack([times, row]), base, partners)
    before, _ = void_times(times, base, partners)
    ratios = profile.ratios(before), profile.ratios(after)[:-1]
    for column in range(base):
        touched = {column, *(base + h for h, b in enumerate(partners) if b == column)}
        if not any(won[c] or np.isnan(fastest[c]) for c in touched) and after[-1, column] >= before[:, column].min():
            np.testing.assert_array_equal(ratios[0][:, column], ratios[1][:, column])


@holds(problems(min_submissions=2))
def test_a_new_submission_never_raises_a_score_without_held_out_workloads(problem):
    times, base, _ = problem
    times = times[:, :base]
    for before, after in zip(score(times[:-1], base, ())[1:], score(times, base, ())[1:], strict=True):
        assert (after[:-1] <= before + 1e-12).all()


@holds(problems(), st.data())
def test_being_faster_never_lowers_the_own_score_without_held_out_workloads(problem, data):
    times, base, _ = problem
    times = times[:, :base]
    row, column = data.draw(st.integers(0, len(times) - 1)), data.draw(st.integers(0, base - 1))
    faster = times.copy()
    faster[row, column] = data.draw(finite_time)
    assume(not faster[row, column] > times[row, column])
    for before, after in zip(score(times, base, ())[1:], score(faster, base, ())[1:], strict=True):
        assert after[row] >= before[row] - 1e-12


@holds(problems(times=finite_time))
def test_a_single_submission_scores_what_it_solves(problem):
    times, base, partners = problem
    _, official, exact = score(times[:1], base, partners)
    np.testing.assert_allclose([official[0], exact[0]], 1.0)


@holds(problems())
def test_equal_submissions_have_equal_scores(problem):
    times, base, partners = problem
    ratios, official, exact = score(np.vstack([times, times[:1]]), base, partners)
    np.testing.assert_array_equal(ratios[0], ratios[-1])
    assert (official[0], exact[0]) == (official[-1], exact[-1])


@holds(problems())
def test_voiding_only_takes_away(problem):
    times, base, partners = problem
    after, _ = void_times(times, base, partners)
    kept = np.isfinite(after)
    np.testing.assert_array_equal(after[kept], times[:, :base][kept])
    assert (void_times(times[:, :base], base, ())[0] <= after).all()


@holds(problems(times=finite_time))
def test_speedups_are_reciprocal_and_multiply(problem):
    times, base, _ = problem
    times, budgets = times[:, :base], np.full(base, 1e6)
    table = np.array([speedups(times, reference, budgets) for reference in range(len(times))])
    np.testing.assert_allclose(table * table.T, 1.0, rtol=1e-9)
    np.testing.assert_allclose(table[0] / table[0, -1], table[-1], rtol=1e-9)


studies = st.lists(st.one_of(some_time, finite_time), min_size=1, max_size=6)


@holds(studies, st.randoms(use_true_random=False))
def test_median_is_that_of_numpy_without_missing_values(values, random):
    present = [value for value in values if not math.isnan(value)]
    expected = np.nan
    if present:
        with np.errstate(invalid="ignore"):
            expected = np.median(present)
    random.shuffle(values)
    np.testing.assert_equal(median_over_studies(np.array(values)), expected)


@holds(studies)
def test_one_more_failure_never_lowers_the_median(values):
    before, after = (median_over_studies(np.array([*values, *more])) for more in ([], [INF]))
    assert np.isnan(before) or after >= before


@st.composite
def trials(draw):
    """Trials of one study with rising times; values around the target, some NaN, none exactly on it."""
    result = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        rows = draw(st.integers(0, 6))
        seconds = np.cumsum(draw(st.lists(st.floats(0.1, 100), min_size=rows, max_size=rows)))
        values = draw(st.lists(st.sampled_from([0.1, 0.89, 0.91, 0.92, math.nan]), min_size=rows, max_size=rows))
        table = Table(
            ("global_step", "score", "validation/accuracy"), np.column_stack([np.arange(rows), seconds, values])
        )
        result.append(
            Trial(submission="s", study=0, workload="w", framework="jax", number=number, path="x", evaluations=table)
        )  # fmt: skip
    return result


@holds(trials(), st.floats(1, 300))
def test_documented_time_is_never_above_the_official_one(group, budget):
    """Without a budget; with one, a time is the same or infinite."""
    target = Target("accuracy", 0.9)
    official = official_study_result(group, target)
    documented = documented_study_result(group, target, None)
    assert documented.seconds <= official.seconds * (1 + 1e-15)  # the official reader is off in the last place
    limited = documented_study_result(group, target, budget).seconds
    assert limited == documented.seconds or (math.isinf(limited) and documented.seconds >= budget)
    assert math.isinf(official.seconds) == math.isinf(documented.seconds)


@holds(trials(), st.randoms(use_true_random=False))
def test_order_of_trials_matters_only_to_ties_of_the_official_rule(group, random):
    target = Target("accuracy", 0.9)
    shuffled = random.sample(group, len(group))
    assert (
        documented_study_result(group, target, None).seconds == documented_study_result(shuffled, target, None).seconds
    )
    assert official_study_result(group, target).row == official_study_result(shuffled, target).row


@holds(problems(times=finite_time, min_submissions=2), st.integers(0, 5))
@example((np.array([[1.0], [1.0]]), 1, ()), 0)
def test_comparison_is_symmetric(problem, seed):
    times, base, _ = problem
    first, second = times[0, :base, None], times[1, :base, None]
    budgets = np.full(base, 1e6)
    ahead = compare_times(first, second, budgets, replicates=50, seed=seed)
    back = compare_times(second, first, budgets, replicates=50, seed=seed)
    assert math.isclose(ahead.speedup * back.speedup, 1.0, rel_tol=1e-9)
    assert ahead.p_workloads == back.p_workloads
    assert 0 < ahead.p_studies <= 1
