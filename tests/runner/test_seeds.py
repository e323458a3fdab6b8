"""Seeds against the check values of the rules; distinct trial seeds by construction."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf_torch.runner import seeds
from algoperf_torch.runner.seeds import TrialSeeds, draw_trial_seed, fold_in, key, split, step_seeds
from algoperf_torch.spec import Ruleset

# trial seed: key, external trial seed, data, optimizer, model, loop, fold-in of step 0, data-selection seed of step 0
CHECK_VALUES = {
    0: [
        (209652396, 398764591),
        (1490491116, 1775704360),
        (457291159, 475933908),
        (883110300, 1715457364),
        (2087180404, 1754952210),
        (42395520, 986786654),
        (1751759863, 0),
        (981539551, 1981469509),
    ],
    1996: [
        (512411578, 906572033),
        (2110979236, 1243800045),
        (541873718, 832536054),
        (1006832566, 1985170951),
        (1831834400, 1986704013),
        (1313050748, 312339773),
        (1607796254, 0),
        (9735203, 320939494),
    ],
    -390119099: [
        (231114636, 2049591267),
        (8032927, 754359461),
        (424335558, 738629725),
        (749826502, 1947427569),
        (1099903287, 1135492652),
        (581886151, 2077270792),
        (1449934477, 0),
        (755305446, 1049822162),
    ],
}


@pytest.mark.parametrize("trial_seed", CHECK_VALUES)
def test_check_values(trial_seed):
    expected_key, external, *four, folded, selection = CHECK_VALUES[trial_seed]
    assert key(trial_seed) == expected_key
    assert split(expected_key, 2)[0] == external
    derived = TrialSeeds.derive(trial_seed, Ruleset.EXTERNAL)
    assert list(derived) == four
    assert fold_in(derived.loop, 0) == folded
    assert step_seeds(derived.loop, 0, 4)[0] == selection


def test_the_other_seeds_of_a_step():
    loop = TrialSeeds.derive(0, Ruleset.EXTERNAL).loop
    assert step_seeds(loop, 0, 4)[1:] == [(151098883, 2088702573), (2073087706, 63333012), (1129613588, 1969816927)]
    assert step_seeds(loop, 0, 3) == step_seeds(loop, 0, 4)[:3]


def test_self_tuning_splits_the_key_itself():
    derived = TrialSeeds.derive(1996, Ruleset.SELF)
    assert list(derived) == split(CHECK_VALUES[1996][0], 4)
    assert derived != TrialSeeds.derive(1996, Ruleset.EXTERNAL)


def test_step_number_is_not_reduced():
    assert fold_in((1, 2), 2**31 + 5)[1] == 2**31 + 5


def test_nothing_touches_the_global_generator():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    TrialSeeds.derive(5, Ruleset.EXTERNAL)
    step_seeds((1, 2), 3, 4)
    assert (np.random.get_state()[1] == before).all()


@given(st.integers(-(2**70), 2**70))
def test_seeds_are_plain_numbers_in_range(trial_seed):
    for pair in TrialSeeds.derive(trial_seed, Ruleset.SELF):
        assert all(type(part) is int and 0 <= part < seeds.MODULUS for part in pair)


@pytest.mark.parametrize("run_seed", [0, 1, -7, 2**63])
def test_every_trial_of_a_workload_has_its_own_seed(run_seed):
    drawn = [
        draw_trial_seed(run_seed, workload="wmt", study=study, trial=trial)
        for study, trial in itertools.product(range(200), range(1, 101))
    ]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < seeds.MODULUS for seed in drawn)


def test_extreme_positions_stay_distinct():
    last_study = seeds.MODULUS // seeds.MAX_TRIALS - 1
    corners = [(0, 1), (0, seeds.MAX_TRIALS), (1, 1), (last_study, 1), (last_study, seeds.MAX_TRIALS)]
    assert len({draw_trial_seed(0, workload="wmt", study=study, trial=trial) for study, trial in corners}) == 5


def test_run_seed_and_workload_matter_and_nothing_else_does():
    first = draw_trial_seed(0, workload="wmt", study=0, trial=1)
    assert first == draw_trial_seed(0, workload="wmt", study=0, trial=1)
    assert first != draw_trial_seed(1, workload="wmt", study=0, trial=1)
    assert first != draw_trial_seed(0, workload="ogbg", study=0, trial=1)


@pytest.mark.parametrize(("study", "trial"), [(-1, 1), (0, 0), (0, seeds.MAX_TRIALS + 1), (seeds.MODULUS, 1)])
def test_positions_that_do_not_exist(study, trial):
    with pytest.raises(ValueError, match="studies count from 0"):
        draw_trial_seed(0, workload="wmt", study=study, trial=trial)


def test_run_seeds_of_the_operating_system_differ():
    drawn = {seeds.draw_run_seed() for _ in range(20)}
    assert len(drawn) > 15
    assert all(0 <= seed < 2**32 for seed in drawn)
