"""How the names of AlgoPerf's search spaces reach the arguments of an optimizer."""

from __future__ import annotations

import pytest
import torch

from algoperf_torch import Hyperparameters, OptimizerAlgorithm
from algoperf_torch.errors import HyperparameterError
from algoperf_torch.optim.hyperparameters import ALIASES, sort_hyperparameters


def sort(given, optimizer_class=torch.optim.AdamW, schedule="cosine", defaults=None):
    return sort_hyperparameters(given, optimizer_class, schedule=schedule, label="it", defaults=defaults)


def test_an_algoperf_point_is_sorted():
    given = {
        "learning_rate": 0.002,
        "one_minus_beta1": 0.1,
        "beta2": 0.99,
        "epsilon": 1e-9,
        "weight_decay": 0.1,
        "warmup_factor": 0.02,
        "label_smoothing": 0.1,
        "dropout_rate": 0.0,
        "grad_clip": 1,
    }
    options = sort(given)
    assert options.optimizer == {"lr": 0.002, "betas": (0.9, 0.99), "eps": 1e-9, "weight_decay": 0.1}
    assert options.schedule == {"warmup_factor": 0.02}
    assert (options.step.label_smoothing, options.step.dropout_rate, options.step.grad_clip) == (0.1, 0.0, 1)


@pytest.mark.parametrize(
    ("name", "optimizer_class", "expected"),
    [
        ("beta1", torch.optim.Adam, {"betas": (0.25, 0.999)}),
        ("beta1", torch.optim.SGD, {"momentum": 0.25}),
        ("one_minus_beta1", torch.optim.SGD, {"momentum": 0.75}),
        ("one_minus_beta_1", torch.optim.Adam, {"betas": (0.75, 0.999)}),
        ("one_minus_beta2", torch.optim.Adam, {"betas": (0.9, 0.75)}),
        ("one_minus_momentum", torch.optim.SGD, {"momentum": 0.75}),
        ("one_minus_momentum", torch.optim.Adam, {"betas": (0.75, 0.999)}),
        ("l2", torch.optim.SGD, {"weight_decay": 0.25}),
        ("epsilon", torch.optim.Adam, {"eps": 0.25}),
        ("learning_rate", torch.optim.Adam, {"lr": 0.25}),
        ("beta2", torch.optim.Adam, {"betas": (0.9, 0.25)}),
    ],
)
def test_aliases(name, optimizer_class, expected):
    assert sort({name: 0.25}, optimizer_class).optimizer == expected


def test_every_alias_is_tried_above_or_below():
    assert set(ALIASES) == {
        "beta1",
        "beta2",
        "beta3",
        "epsilon",
        "l2",
        "learning_rate",
        "one_minus_beta1",
        "one_minus_beta2",
        "one_minus_beta_1",
        "one_minus_momentum",
    }

    class ThreeBetas(torch.optim.SGD):
        def __init__(self, params, lr=0.1, betas=(0.9, 0.99, 0.999)):
            super().__init__(params, lr)

    assert sort({"beta3": 0.25}, ThreeBetas).optimizer == {"betas": (0.9, 0.99, 0.25)}
    with pytest.raises(HyperparameterError, match="no hyperparameter 'beta3'"):
        sort({"beta3": 0.25}, torch.optim.Adam)


def test_an_argument_of_that_very_name_comes_first():
    class Own(torch.optim.SGD):
        def __init__(self, params, lr=0.1, beta1=0.5, warmup_steps=0, learning_rate=None):
            super().__init__(params, lr)

    given = {"beta1": 0.7, "warmup_steps": 10, "learning_rate": "auto"}
    options = sort(given, Own)
    assert options.optimizer == given
    assert options.schedule == {}


def test_given_values_lie_over_defaults():
    defaults = {"lr": 0.5, "betas": (0.8, 0.9), "warmup_factor": 0.1, "grad_clip": 1.0, "end_factor": 0.1}
    options = sort({"beta2": 0.7, "warmup_steps": 5}, defaults=defaults)
    assert options.optimizer == {"lr": 0.5, "betas": (0.8, 0.7)}
    assert options.schedule == {
        "warmup_steps": 5
    }  # the default warm-up, and an option of another schedule, are dropped
    assert options.step.grad_clip == 1.0


def test_constructors_that_take_anything_get_everything():
    class Anything(torch.optim.SGD):
        def __init__(self, params, lr=0.1, **others):
            super().__init__(params, lr)

    assert sort({"lr": 1, "shape": "round"}, Anything).optimizer == {"lr": 1, "shape": "round"}


def test_both_lengths_of_a_warm_up_are_refused():
    algorithm = OptimizerAlgorithm.over(torch.optim.SGD, schedule="cosine")
    with pytest.raises(HyperparameterError, match="Both warmup_steps and warmup_factor are given"):
        algorithm.check_hyperparameters(Hyperparameters(lr=0.1, warmup_factor=0.1, warmup_steps=5))
