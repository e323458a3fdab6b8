"""What holds for every workload on prepared data: streams and evaluation; on generated data, at test scale."""

import pytest
import torch

from algoperf_torch.data.stream import map_tensors
from algoperf_torch.data.workers import Workers
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.layers import (
    running_statistics,
    set_batch_norm_group_size,
    set_dropout,
)
from algoperf_torch.workloads.registry import build_workload

NAMES = ("fastmri", "imagenet_resnet", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech")
BATCH = 4


@pytest.fixture(scope="module", params=NAMES)
def workload(request, prepared):
    dataset = build_workload(request.param).spec.dataset
    workload = build_workload(request.param, prepared(dataset), model_scale="test")
    workload.open()
    return workload


def batch_of(workload, draw, *, rank=0, world_size=1, seed=1, size=BATCH):
    make = workload.train_batches(seed=seed, global_batch_size=size, rank=rank, world_size=world_size)
    return workload.finish_batch(make(draw))


def flat(batch):
    tensors = []
    map_tensors(batch, lambda tensor: tensors.append(tensor) or tensor)
    return tensors


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for one, two in zip(flat(batch), flat(other), strict=True):
        assert torch.equal(one, two)


# ------------------------------------------------------------------------------------------------------------- stream


@pytest.mark.parametrize("draw", [0, 1, 7])
def test_ranks_share_the_global_batch(workload, draw):
    whole = flat(batch_of(workload, draw))
    for world_size in (2, 4):
        parts = [flat(batch_of(workload, draw, rank=rank, world_size=world_size)) for rank in range(world_size)]
        for tensor, *shares in zip(whole, *parts, strict=True):
            assert torch.equal(tensor, torch.cat(shares))


def test_any_draw_without_replay(workload):
    make = workload.train_batches(seed=1, global_batch_size=BATCH, rank=0, world_size=1)
    draws = [workload.finish_batch(make(draw)) for draw in (3, 0, 12, 3)]
    assert_same(draws[0], draws[3])
    assert_same(draws[2], batch_of(workload, 12))
    assert not torch.equal(flat(draws[0])[0], flat(draws[1])[0])
    assert not torch.equal(flat(draws[1])[0], flat(batch_of(workload, 0, seed=2))[0])


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_workers_change_nothing(workload, num_threads, monkeypatch):
    if not hasattr(workload, "workers"):
        pytest.skip("batches are gathered by one thread")
    expected = batch_of(workload, 5)
    monkeypatch.setattr(workload, "workers", Workers(num_threads))
    assert_same(expected, batch_of(workload, 5))


def test_impossible_batch_sizes(workload):
    with pytest.raises(UsageError, match="not divisible by 3 ranks"):
        batch_of(workload, 0, world_size=3)
    with pytest.raises(UsageError, match="training examples"):
        batch_of(workload, 0, size=1_000)


# --------------------------------------------------------------------------------------------------------- evaluation


def evaluate(workload, model, split, *, size, world_size=1):
    rows = {}
    with torch.no_grad():
        for rank in range(world_size):
            batches = workload.eval_batches(split, seed=5, rank=rank, world_size=world_size, eval_batch_size=size)
            for chunk, batch in batches:
                batch = workload.finish_batch(batch)
                rows[chunk] = workload.metric_sums(workload.forward(model, batch), batch)
    assert sorted(rows) == list(range(workload.num_chunks(split, size)))
    return workload.metrics(torch.stack([rows[chunk] for chunk in sorted(rows)]), split)


@pytest.fixture(scope="module")
def evaluated_model(workload):
    """Initialised at random, with an output layer that is not zero."""
    torch.manual_seed(0)
    model = workload.build_model().eval()
    with torch.no_grad():
        for name in ("head", "output"):
            if hasattr(model, name):
                getattr(model, name).weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize("split", [Split.EVAL_TRAIN, Split.VALIDATION, Split.TEST])
def test_metrics_do_not_depend_on_batches_or_ranks(workload, evaluated_model, split):
    expected = evaluate(workload, evaluated_model, split, size=16)
    assert set(expected) == set(workload.spec.metrics)
    assert evaluate(workload, evaluated_model, split, size=16, world_size=2) == expected
    for size in (8, 40):  # chunks of one and of five: the last is ragged
        assert evaluate(workload, evaluated_model, split, size=size) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_evaluation_twice_is_the_same(workload, evaluated_model):
    first, second = (evaluate(workload, evaluated_model, Split.EVAL_TRAIN, size=32) for _ in range(2))
    assert first == second


def test_an_incomplete_evaluation_is_an_error(workload, evaluated_model):
    _, batch = next(workload.eval_batches(Split.VALIDATION, seed=5, eval_batch_size=8))
    batch = workload.finish_batch(batch)
    with torch.no_grad():
        row = workload.metric_sums(workload.forward(evaluated_model, batch), batch)
    with pytest.raises(DataError, match="An evaluation"):
        workload.metrics(row[None], Split.VALIDATION)


# ----------------------------------------------------------------------------------------------------------- training


def test_halves_of_a_batch_make_its_gradient(workload):
    """Two ranks in one process: each computes its share with whole groups of batch norm; sums and statistics agree."""
    if "deepspeech" in workload.spec.name:
        pytest.skip("its batch norm spans the ranks; see librispeech/test_ranks.py")
    torch.manual_seed(0)
    model = workload.build_model().double()
    set_dropout(model, 0.0)
    set_batch_norm_group_size(model, 2)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def run(batches):
        total, count, grads, statistics = 0.0, 0.0, None, []
        for batch in batches:
            model.load_state_dict(start)
            model.zero_grad()
            loss = workload.loss(workload.forward(model, batch), batch)
            loss.summed.backward()
            total, count = total + float(loss.summed.detach()), count + float(loss.n_valid)
            new = [parameter.grad.clone() for parameter in model.parameters()]
            grads = new if grads is None else [a + b for a, b in zip(grads, new, strict=True)]
            statistics.append([statistic.clone() for statistic in running_statistics(model)])
        return total, count, grads, [sum(values) / len(values) for values in zip(*statistics, strict=True)]

    def double(batch):
        return map_tensors(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    whole = run([double(batch_of(workload, 0))])
    halves = run([double(batch_of(workload, 0, rank=rank, world_size=2)) for rank in (0, 1)])
    assert halves[:2] == pytest.approx(whole[:2], rel=1e-9)
    for one, two in zip([*whole[2], *whole[3]], [*halves[2], *halves[3]], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)
