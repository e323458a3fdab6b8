from __future__ import annotations

import math

import pytest
import torch

from algoperf_torch.kernels.adam.reference import adam_
from algoperf_torch.kernels.ademamix import ademamix_

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
OPTIONS = ADAM | {"beta3": 0.9999, "alpha": 3.0, "mix_warmup": 30}  # steps are 1 to 50
GIVEN = {"lr": 0.01, "grad_scale": 0.7}


@pytest.mark.parametrize("changes", [{}, {"mix_warmup": 0}, {"beta1": 0.0}, {"beta3": 0.0}], ids=str)
def test_kernel_agrees_with_reference(proofs, layout, changes):
    proofs.agree(ademamix_, layout, OPTIONS | changes, GIVEN)


def test_operator(proofs):
    proofs.operator(ademamix_, OPTIONS, GIVEN)


def test_without_the_slow_average_it_is_adamw():
    ours, theirs = torch.linspace(-2, 2, 30), torch.linspace(-2, 2, 30)
    m, slow, v, other_m, other_v = torch.zeros(5, 30)
    step, lr = torch.zeros(()), torch.tensor(0.01)
    for _ in range(20):
        step += 1
        ademamix_([ours], [ours.cos()], [m], [slow], [v], [step], lr, **OPTIONS | {"alpha": 0.0})
        adam_([theirs], [theirs.cos()], [other_m], [other_v], [], [step], lr, **ADAM)
    torch.testing.assert_close(ours, theirs)


def test_transcription_of_the_paper():
    """Algorithm 1 in float64, scalar by scalar, past the end of the warm-up; half-lives as such."""
    theta, m1, m2, nu = 0.7, 0.0, 0.0, 0.0
    param, state, step = (
        torch.tensor([0.7], dtype=torch.float64),
        torch.zeros(3, 1, dtype=torch.float64),
        torch.zeros(()),
    )
    options = OPTIONS | {"mix_warmup": 20}
    first, last = (math.log(0.5) / math.log(beta) for beta in (0.9, 0.9999))
    for t in range(1, 30):
        share, lr = min(t / 20, 1), 0.01
        alpha, beta3 = 3.0 * share, 0.5 ** (1 / ((1 - share) * first + share * last))
        g = 2 * theta - 1
        m1, m2, nu = 0.9 * m1 + 0.1 * g, beta3 * m2 + (1 - beta3) * g, 0.999 * nu + 0.001 * g * g
        m1_hat, nu_hat = m1 / (1 - 0.9**t), nu / (1 - 0.999**t)
        theta -= lr * ((m1_hat + alpha * m2) / (nu_hat**0.5 + 1e-8) + 0.1 * theta)
        step += 1
        rate = torch.tensor(lr, dtype=torch.float64)
        ademamix_([param], [2 * param - 1], *([s] for s in state), [step], rate, **options)
    assert abs(param.item() - theta) < 1e-12
