"""Checkpoints: what can be stored, what comes back, and what a crash or a mix-up leads to."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np
import pytest
import torch

from algoperf_torch.errors import CheckpointError
from algoperf_torch.runner import checkpoint

CPU = torch.device("cpu")


class Moments(NamedTuple):
    mean: torch.Tensor
    count: int


def test_state_comes_back_as_it_was(tmp_path):
    state = {
        "moments": Moments(torch.arange(3.0), 7),
        "nested": [{"betas": (0.9, 0.99), 3: None, "ordered": OrderedDict(a=1)}, torch.zeros(2, dtype=torch.bfloat16)],
        "array": np.arange(4, dtype=np.int16),
        "scalar": np.float64(0.1),
        "flag": True,
        "latest": deque([torch.ones(1), Moments(torch.ones(1), 2)], maxlen=3),
        "kinds": [torch.bfloat16, torch.Size([2, 3]), torch.device("cpu")],
    }
    path = checkpoint.save(tmp_path, 12, {"identity": {}, "algorithm": state})
    loaded = checkpoint.load(path, identity={})["algorithm"]
    back = checkpoint.decode(loaded, state, "algorithm")
    assert isinstance(back["moments"], Moments)
    assert back["moments"].count == 7
    assert torch.equal(back["moments"].mean, state["moments"].mean)
    assert back["nested"][0]["betas"] == (0.9, 0.99)
    assert isinstance(back["nested"][0]["ordered"], OrderedDict)
    assert back["nested"][1].dtype is torch.bfloat16
    assert back["array"].dtype == np.int16
    assert back["scalar"] == 0.1
    assert back["flag"] is True
    assert (len(back["latest"]), back["latest"].maxlen, back["latest"][1].count) == (2, 3, 2)
    assert back["kinds"] == state["kinds"]


class Custom:
    pass


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": {"b": Custom()}}, r"algorithm\['a'\]\['b'\]"),
        ([1, (2, Custom())], r"algorithm\[1\]\[1\]"),
        (Moments(Custom(), 1), r"algorithm\.mean"),
        ({"f": lambda: None}, r"algorithm\['f'\]"),
        ({3.5: 1}, r"key 3\.5"),
        ({"s": {1, 2}}, r"builtins\.set"),
    ],
)
def test_what_cannot_be_stored_is_named(tmp_path, value, where):
    with pytest.raises(CheckpointError, match=where):
        checkpoint.save(tmp_path, 1, {"identity": {}, "algorithm": value})
    assert list(tmp_path.iterdir()) == []


def test_a_named_tuple_needs_a_fresh_one_to_be_rebuilt_from(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"identity": {}, "algorithm": Moments(torch.ones(1), 1)})
    with pytest.raises(CheckpointError, match="no such named tuple"):
        checkpoint.decode(checkpoint.load(path, identity={})["algorithm"], None, "algorithm")


def test_only_the_newest_is_kept_and_leftovers_are_ignored(tmp_path):
    for step in (3, 12, 100):
        checkpoint.save(tmp_path, step, {"identity": {}, "step": step})
    (tmp_path / ".checkpoint_000000200.pt.tmp").write_bytes(b"half")  # a crash while writing
    (tmp_path / "checkpoint_best.pt").write_bytes(b"not ours")
    assert checkpoint.latest(tmp_path).name == "checkpoint_000000100.pt"
    assert checkpoint.load(checkpoint.latest(tmp_path), identity={})["step"] == 100


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other format"])
def test_a_damaged_checkpoint_is_an_error_of_ours(tmp_path, damage):
    path = checkpoint.save(tmp_path, 1, {"identity": {}, "model": torch.zeros(1000)})
    content = path.read_bytes()
    if damage == "other format":
        torch.save({"format": 99}, path)
    else:
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 100}[damage])
    with pytest.raises(CheckpointError, match="checkpoint_000000001"):
        checkpoint.load(path, identity={})


def test_a_pickled_class_is_not_executed(tmp_path):
    path = tmp_path / "checkpoint_000000001.pt"
    torch.save({"format": checkpoint.FORMAT, "model": Custom()}, path)
    with pytest.raises(CheckpointError, match="Cannot read"):
        checkpoint.load(path, identity={})


def test_the_checkpoint_of_another_trial_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"identity": {"workload": "mnist", "version": "local"}})
    with pytest.raises(CheckpointError, match="its workload is 'mnist', this trial's is 'digits'"):
        checkpoint.load(path, identity={"workload": "digits", "version": "local"})


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    old = checkpoint.save(tmp_path, 1, {"identity": {}})

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(tmp_path, 2, {"identity": {}})
    assert list(tmp_path.iterdir()) == [old]


def test_random_state_round_trip():
    generators = {"a": torch.Generator().manual_seed(1), "b": torch.Generator().manual_seed(2)}
    torch.manual_seed(3)
    state = checkpoint.random_state(CPU, generators)
    expected = [torch.rand(3), *(torch.rand(3, generator=generator) for generator in generators.values())]
    checkpoint.restore_random_state(state, CPU, generators)
    actual = [torch.rand(3), *(torch.rand(3, generator=generator) for generator in generators.values())]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_random_state_of_another_kind_of_device_is_refused():
    state = checkpoint.random_state(CPU, {"a": torch.Generator()})
    with pytest.raises(CheckpointError, match="another device"):
        checkpoint.restore_random_state(state, CPU, {})
