from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.sgd import sgd_
from algoperf_torch.kernels.sgd.reference import sgd_ as reference_sgd_

OPTIONS = {"momentum": 0.9, "weight_decay": 0.1}
GIVEN = {"lr": 0.01, "grad_scale": 0.7}
KINDS = {
    "plain": ({}, ("momentum_buffers",)),
    "heavy ball": ({}, ()),
    "nesterov": ({"nesterov": True}, ()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_agrees_with_reference(proofs, layout, kind):
    switches, absent = KINDS[kind]
    proofs.agree(sgd_, layout, OPTIONS | switches, GIVEN, absent)


@pytest.mark.parametrize("kind", KINDS)
def test_operator(proofs, kind):
    switches, absent = KINDS[kind]
    proofs.operator(sgd_, OPTIONS | switches, GIVEN, absent)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_reference_is_torch_sgd(momentum, nesterov):
    ours, theirs = torch.linspace(-2, 2, 30), torch.nn.Parameter(torch.linspace(-2, 2, 30))
    buffers = [torch.zeros(30)] if momentum else []
    optimizer = torch.optim.SGD([theirs], lr=0.01, momentum=momentum, weight_decay=0.1, nesterov=nesterov)
    for _ in range(100):
        theirs.grad = theirs.detach().cos() * 3
        reference_sgd_(
            [ours], [ours.cos() * 3], buffers, torch.tensor(0.01),
            momentum=momentum, weight_decay=0.1, nesterov=nesterov,
        )  # fmt: skip
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
