"""The references of the kernels and the update rules of the optimizers are one mathematics."""

from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.adam.reference import adam_
from algoperf_torch.kernels.schedule_free.reference import schedule_free_
from algoperf_torch.kernels.sgd.reference import sgd_
from algoperf_torch.optim.adamw import adamw_
from algoperf_torch.optim.nadamw import nadamw_
from algoperf_torch.optim.schedule_free import schedule_free_ as schedule_free_sgd_
from algoperf_torch.optim.schedule_free import schedule_free_adamw_
from algoperf_torch.optim.sgd import sgd_ as optim_sgd_

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
LR = torch.tensor(0.05)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def draw(count: int, dtype: torch.dtype, num_states: int) -> list[torch.Tensor]:
    """Parameter, gradient and states in float32, all positive enough to be second moments."""
    generator = torch.Generator().manual_seed(0)
    param, grad = (torch.randn(count, generator=generator).to(dtype) for _ in range(2))
    return [param, grad, *(torch.rand(count, generator=generator) for _ in range(num_states))]


def check(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7 if a.dtype is torch.bfloat16 else 1e-5, atol=1e-6)


@DTYPES
@pytest.mark.parametrize("nesterov", [False, True])
def test_adamw_and_nadamw(dtype, nesterov):
    ours, theirs = draw(200, dtype, 2), draw(200, dtype, 2)
    for t in range(1, 20):
        step = torch.tensor(float(t))
        adam_(*([x] for x in ours), [], [step], LR, nesterov=nesterov, **ADAM)
        (nadamw_ if nesterov else adamw_)(*theirs, step, lr=LR, **ADAM)
    check(ours, theirs)


@DTYPES
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(dtype, nesterov):
    ours, theirs = draw(200, dtype, 1), draw(200, dtype, 1)
    options = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    for _ in range(5):
        sgd_(*([x] for x in ours), LR, **options)
        optim_sgd_(*theirs, lr=LR, **options)
    check(ours, theirs)


@DTYPES
@pytest.mark.parametrize("adam", [True, False])
def test_schedule_free(dtype, adam):
    ours, theirs = draw(200, dtype, 2), draw(200, dtype, 2)
    for t in range(1, 10):
        step, weight = torch.tensor(float(t)), torch.tensor(1 / t)
        param, grad, z, v = ours
        schedule_free_([param], [grad], [z], [v] if adam else [], [step], [weight], LR, **ADAM)
        param, grad, z, v = theirs
        if adam:
            schedule_free_adamw_(param, grad, z, v, weight, step, lr=LR, **ADAM)
        else:
            schedule_free_sgd_(param, grad.float().clone(), z, weight, lr=LR, beta=0.9, weight_decay=0.1)
    check(ours, theirs)
