"""Chunks and padding of evaluation batches."""

from typing import NamedTuple

import pytest
import torch

from algoperf_torch.spec import Split
from algoperf_torch.workloads.base import pad_batch
from algoperf_torch.workloads.registry import build_workload


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def test_padding_reaches_every_tensor_and_keeps_the_containers():
    batch = {"inputs": Pair(torch.ones(3, 2), torch.ones(3, dtype=torch.int64)), "more": [torch.ones(3)], "name": "x"}
    padded = pad_batch(batch, 3, 5)
    assert isinstance(padded["inputs"], Pair)
    assert padded["inputs"].left.tolist() == [[1, 1]] * 3 + [[0, 0]] * 2
    assert padded["inputs"].right.dtype == torch.int64
    assert padded["more"][0].tolist() == [1, 1, 1, 0, 0]
    assert padded["weights"].tolist() == [1, 1, 1, 0, 0]
    assert padded["name"] == "x"
    assert "weights" not in batch


def test_weights_of_the_batch_are_kept():
    padded = pad_batch({"inputs": torch.ones(2, 3), "weights": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}, 2, 3)
    assert padded["weights"].tolist() == [[1, 0], [1, 1], [0, 0]]


def test_full_batch_gets_weights_only():
    inputs = torch.ones(4, 2)
    padded = pad_batch({"inputs": inputs}, 4, 4)
    assert padded["inputs"] is inputs
    assert padded["weights"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("eval_batch_size", "chunk"), [(None, 150), (300, 150), (301, 151), (1, 1), (7, 4)])
def test_chunk_size(eval_batch_size, chunk):
    workload = build_workload("digits")
    assert workload.chunk_size(eval_batch_size) == chunk
    assert workload.num_chunks(Split.VALIDATION, eval_batch_size) == -(-300 // chunk)


def test_ranks_take_turns():
    workload = build_workload("digits")
    workload.open()
    chunks = [
        [chunk for chunk, _ in workload.eval_batches(Split.TEST, seed=0, rank=rank, world_size=4, eval_batch_size=100)]
        for rank in range(4)
    ]
    assert chunks == [[0, 4], [1, 5], [2], [3]]
