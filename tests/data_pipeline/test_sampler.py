"""Every global batch is a function of (seed, draw); the ranks' shares make it up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf_torch.data.sampler import EpochSampler, subset
from algoperf_torch.errors import UsageError


@settings(max_examples=100, deadline=None)
@given(
    world_size=st.sampled_from([1, 2, 3, 4, 8]),
    local=st.integers(1, 9),
    extra=st.integers(0, 100),
    seed=st.integers(-(2**63), 2**64),
    draw=st.integers(0, 10**12),
)
def test_ranks_share_the_global_batch(world_size, local, extra, seed, draw):
    size = world_size * local
    whole = EpochSampler(size + extra, size, seed=seed)
    ranks = [
        EpochSampler(size + extra, size, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    np.testing.assert_array_equal(np.concatenate([rank.indices(draw) for rank in ranks]), whole.indices(draw))
    values = whole.generator(draw).random((size, 2))
    shares = [rank.local(rank.generator(draw).random((size, 2))) for rank in ranks]
    np.testing.assert_array_equal(np.concatenate(shares), values)


def test_an_epoch_visits_examples_once_and_drops_the_incomplete_batch():
    sampler = EpochSampler(103, 10, seed=1)
    assert sampler.draws_per_epoch == 10
    for epoch in range(3):
        seen = np.concatenate([sampler.indices(10 * epoch + batch) for batch in range(10)])
        assert len(set(seen.tolist())) == 100
        assert seen.min() >= 0
        assert seen.max() < 103


def test_epochs_and_seeds_have_different_orders():
    sampler = EpochSampler(100, 100, seed=1)
    orders = {tuple(sampler.indices(draw)) for draw in range(5)}
    orders |= {tuple(EpochSampler(100, 100, seed=seed).indices(0)) for seed in (2, 3, -1, 2**40)}
    assert len(orders) == 9


def test_draws_can_be_asked_for_in_any_order():
    sampler, fresh = EpochSampler(50, 7, seed=3), lambda: EpochSampler(50, 7, seed=3)
    for draw in [0, 29, 3, 1000, 3, 0]:
        np.testing.assert_array_equal(sampler.indices(draw), fresh().indices(draw))


def test_every_example_is_drawn_equally_often_in_the_long_run():
    sampler = EpochSampler(10, 4, seed=0)  # 2 of 10 are left out in each epoch, others each time
    counts = np.bincount(np.concatenate([sampler.indices(draw) for draw in range(2000)]), minlength=10)
    assert counts.min() > 0.9 * counts.mean()


def test_augmentation_differs_from_draw_to_draw_and_from_the_order():
    sampler = EpochSampler(10, 5, seed=0)
    numbers = {tuple(sampler.generator(draw).random(3)) for draw in range(50)}
    assert len(numbers) == 50


@pytest.mark.parametrize(
    ("size", "world_size", "message"),
    [
        (10, 3, "not divisible by 3 ranks"),
        (0, 1, "between 1 and the 100"),
        (101, 1, "between 1 and the 100"),
        (-2, 1, "between"),
    ],
)
def test_bad_batch_sizes(size, world_size, message):
    with pytest.raises(UsageError, match=message):
        EpochSampler(100, size, seed=0, world_size=world_size)


def test_subset():
    sample = subset(1000, 300, seed=5)
    assert len(set(sample.tolist())) == 300
    np.testing.assert_array_equal(sample, subset(1000, 300, seed=5))
    assert sample.tolist() != subset(1000, 300, seed=6).tolist()
    assert sorted(subset(20, 20, seed=-1).tolist()) == list(range(20))
    for size in (0, 1001):
        with pytest.raises(UsageError, match="without replacement"):
            subset(1000, size, seed=0)
