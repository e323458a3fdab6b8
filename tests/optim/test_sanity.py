"""The suite of small pathologies: known methods get the verdicts that their theory gives."""

from __future__ import annotations

import math

import pytest
import torch

from algoperf_torch import BaseOptimizer, OptimizerAlgorithm
from algoperf_torch.errors import HyperparameterError
from algoperf_torch.optim.sanity import PROBLEMS, run_problem, run_resume, run_suite
from algoperf_torch.runner.sanity import SanityOptions, main
from algoperf_torch.runner.submissions import load_submission

BY_NAME = {problem.name: problem for problem in PROBLEMS}


def outcome(reference, name, point=None):
    return run_problem(load_submission(reference).algorithm, point or {}, BY_NAME[name])


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_error_is_one_at_the_start(problem):
    assert problem.error(problem.start()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("reference", "name", "passes"),
    [
        ("nadamw", "saddle", True),
        ("nadamw", "sparse gradients", True),
        ("nadamw", "scale changes", True),
        ("torch.optim:SGD", "scale changes", False),
        ("torch.optim:SGD", "sparse gradients", False),
        ("torch.optim:SGD", "unused parameters", True),
        ("soap", "ill-conditioning", True),
        ("schedule_free_adamw", "noise", True),
        ("torch.optim:Rprop", "noise", False),
        ("nadamw", "NaN batch", False),
        ("nadamw_default", "plateau", True),
    ],
)
def test_verdicts(reference, name, passes):
    result = outcome(reference, name)
    assert result.passed is passes, result
    assert (result.meaning == "") is passes


def test_an_optimizer_that_skips_what_is_not_finite_survives_nan():
    class Careful(torch.optim.Adam):
        def step(self, closure=None):
            if all(p.grad is None or p.grad.isfinite().all() for g in self.param_groups for p in g["params"]):
                super().step(closure)

    assert run_problem(OptimizerAlgorithm.over(Careful), {}, BY_NAME["NaN batch"]).passed


def test_a_given_learning_rate_is_the_only_one():
    result = outcome("nadamw", "ill-conditioning", {"lr": 1e-9})
    assert not result.passed
    assert math.isnan(result.lr)


def test_forgotten_state_is_found_by_resuming():
    class Forgets(BaseOptimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})
            self.momentum = {}

        def update_(self, param, grad, state, group):
            momentum = self.momentum.setdefault(param, torch.zeros_like(param))
            param.sub_(momentum.lerp_(grad, 0.5) * group["lr"])

    result = run_resume(OptimizerAlgorithm.over(Forgets), {})
    assert not result.passed
    assert result.error > 0
    assert "`state_dict` misses something" in result.meaning
    assert run_resume(load_submission("ema:shampoo").algorithm, {}).passed


def test_what_a_submission_raises_is_its_outcome():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            raise KeyError("tuple")

    outcomes = run_suite(OptimizerAlgorithm.over(Raises), {}, problems=PROBLEMS[:1])
    assert [item.passed for item in outcomes] == [False, False]
    assert "KeyError: 'tuple'" in outcomes[1].meaning


def test_the_suite_keeps_its_time():
    """Every problem gets a share of the time and counts with what it has reached."""
    outcomes = run_suite(load_submission("torch.optim:LBFGS").algorithm, {}, seconds=2.0)
    assert [item.problem for item in outcomes] == ["resume", *BY_NAME]


def test_unusable_hyperparameters_are_refused():
    with pytest.raises(HyperparameterError, match="has no hyperparameter 'speed'"):
        run_suite(load_submission("nadamw").algorithm, {"speed": 1})


def test_the_command_prints_a_table(capsys):
    assert main(SanityOptions(submission="torch.optim:SGD", hparams=("lr=0.1",))) == 0
    out = capsys.readouterr().out
    assert all(problem.name in out for problem in PROBLEMS)
    assert BY_NAME["scale changes"].failure in out
    assert "FAILED" in out
    assert main(SanityOptions(submission="torch.optim:SparseAdam")) == 1
