"""Packed rows: the golden example, a plain packer, streams that any rank and any draw can enter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf_torch.data.packed import Ragged
from algoperf_torch.errors import UsageError
from algoperf_torch.workloads.wmt.data import RowStream, fitting, padded
from algoperf_torch.workloads.wmt.packing import Pairs, RowOrder, first_in_row


def ragged(sentences):
    values = np.concatenate([np.array(sentence, dtype=np.uint16) for sentence in sentences])
    return Ragged(values, np.cumsum([0, *map(len, sentences)]))


def pairs_of(pairs):
    source, target = zip(*pairs, strict=True)
    counts = [np.array([np.count_nonzero(sentence) for sentence in side], dtype=np.uint16) for side in (source, target)]
    return Pairs(ragged(source), ragged(target), *counts)


def random_pairs(count, length, seed=0, unknown=0.02):
    rng = np.random.default_rng(seed)

    def sentence():
        tokens = rng.integers(3, 500, size=rng.integers(0, length))
        tokens[rng.random(len(tokens)) < unknown] = 0
        return [*tokens.tolist(), 2]

    return [(sentence(), sentence()) for _ in range(count)]


def test_golden_packing(metric_vectors):
    pairs = pairs_of(metric_vectors.json["packing_pairs"])
    rows = RowOrder(pairs, np.arange(20), length=16)
    batch = rows.rows(0, rows.num_rows)
    for name in (
        "inputs",
        "inputs_position",
        "inputs_segmentation",
        "targets",
        "targets_position",
        "targets_segmentation",
    ):
        np.testing.assert_array_equal(batch[name], metric_vectors.arrays[f"packing_{name}"], err_msg=name)
    np.testing.assert_array_equal(batch["weights"], metric_vectors.arrays["packing_targets"] > 0)


def plain_packing(pairs, length):
    """Rows of pair numbers, one pair at a time."""
    rows, row, used = [], [], [0, 0]
    for number, sides in enumerate(pairs):
        counts = [np.count_nonzero(side) for side in sides]
        if number % length == 0 or any(u + c > length for u, c in zip(used, counts, strict=True)):
            rows.append(row)
            row, used = [], [0, 0]
        row.append(number)
        used = [u + c for u, c in zip(used, counts, strict=True)]
    return [*rows, row][1:]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 70), st.sampled_from([8, 16, 32]))
def test_rows_are_filled_in_order(seed, count, length):
    pairs = random_pairs(count, length, seed)
    packed = pairs_of(pairs)
    begins = first_in_row(packed.source_count.astype(np.int64), packed.target_count.astype(np.int64), length)
    assert [row[0] for row in plain_packing(pairs, length)] == np.flatnonzero(begins).tolist()


def test_rows_hold_their_sentences():
    pairs = random_pairs(60, 16, seed=4)
    order = np.random.default_rng(1).permutation(60)
    rows = RowOrder(pairs_of(pairs), order, length=16)
    expected = plain_packing([pairs[number] for number in order], 16)
    assert rows.num_rows == len(expected)
    batch = rows.rows(2, 9)
    for row, places in enumerate(expected[2:9]):
        for side, name in enumerate(("inputs", "targets")):
            tokens = [np.array(pairs[order[place]][side]) for place in places]
            kept = [sentence[: np.count_nonzero(sentence)] for sentence in tokens]
            flat = np.concatenate(kept)
            positions = np.concatenate([np.arange(len(sentence)) for sentence in kept])
            segments = np.repeat(np.arange(1, len(kept) + 1), [len(sentence) for sentence in kept]) * (flat != 0)
            for found, wanted in zip(
                (batch[name], batch[f"{name}_position"], batch[f"{name}_segmentation"]),
                (flat, positions, segments),
                strict=True,
            ):
                np.testing.assert_array_equal(found[row, : len(wanted)], wanted)
                assert not found[row, len(wanted) :].any()


def stream(pairs, *, batch=8, rank=0, world_size=1, seed=3, length=16):
    return RowStream(pairs, fitting(pairs, length), length, batch, seed=seed, rank=rank, world_size=world_size)


@pytest.fixture(scope="module")
def some_pairs():
    return pairs_of(random_pairs(200, 12))


def test_an_epoch_has_every_pair_once(some_pairs):
    rows = stream(some_pairs)
    draws = rows._first_draw[1]
    tokens = [rows(draw)["inputs"] for draw in range(draws)]
    found = np.sort(torch.cat(tokens).flatten().numpy())
    everything = np.sort(np.concatenate([some_pairs.source[i][: some_pairs.source_count[i]] for i in range(200)]))
    missing = len(everything) - np.count_nonzero(found)  # of the incomplete last batch
    assert 0 <= missing < 8 * 16
    assert draws == rows._rows.num_rows // 8
    other = rows(draws)["inputs"]  # the next epoch, in another order
    assert not torch.equal(other, tokens[0])


def test_ranks_share_the_global_batch(some_pairs):
    for draw in (0, 3, 40):
        whole = stream(some_pairs)(draw)
        parts = [stream(some_pairs, rank=rank, world_size=2)(draw) for rank in range(2)]
        for name in whole:
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
            assert whole[name].dtype == torch.int64


def test_any_draw_without_replay(some_pairs):
    rows = stream(some_pairs)
    in_order = [rows(draw) for draw in range(40)]
    for draw in (39, 0, 20, 11):
        for name, value in stream(some_pairs)(draw).items():
            assert torch.equal(value, in_order[draw][name])
        assert torch.equal(rows(draw)["targets"], in_order[draw]["targets"])
    assert not torch.equal(stream(some_pairs, seed=4)(0)["inputs"], in_order[0]["inputs"])


def test_impossible_batch_sizes(some_pairs):
    with pytest.raises(UsageError, match="not divisible by 3 ranks"):
        stream(some_pairs, world_size=3)
    with pytest.raises(UsageError, match="packed rows"):
        stream(some_pairs, batch=1_000)


def test_padded_sentences():
    pairs = pairs_of([([5, 0, 6, 2], [7, 2]), ([8, 2], [9, 9, 2])])
    batch = padded(pairs, np.array([1, 0]), 6)
    assert batch["inputs"].tolist() == [[8, 2, 0, 0, 0, 0], [5, 0, 6, 2, 0, 0]]
    assert batch["targets"].tolist() == [[9, 9, 2, 0, 0, 0], [7, 2, 0, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
