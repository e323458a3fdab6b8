from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.muon import muon_apply_, muon_momentum_
from algoperf_torch.kernels.newton_schulz import newton_schulz


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_agrees_with_reference(proofs, layout, nesterov):
    proofs.agree(muon_momentum_, layout, {"momentum": 0.95, "nesterov": nesterov}, {"grad_scale": 0.7})


def test_apply_agrees_with_reference(proofs, layout):
    proofs.agree(muon_apply_, layout, {"weight_decay": 0.1}, {"lr": 0.01})


def test_operators(proofs):
    proofs.operator(muon_momentum_, {"momentum": 0.95}, {"grad_scale": 0.7})
    proofs.operator(muon_apply_, {"weight_decay": 0.1}, {"lr": 0.01})


def test_a_step_is_torch_muon():
    start = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    momentum, directions = torch.zeros(6, 10), torch.zeros(1, 6, 10, dtype=torch.bfloat16)
    for _ in range(10):
        theirs.grad = theirs.detach().cos() + theirs.detach()
        optimizer.step()
        muon_momentum_([momentum], [ours.cos() + ours], list(directions), momentum=0.95)
        muon_apply_([ours], list(newton_schulz(directions)), [torch.ones(())], torch.tensor(0.02), weight_decay=0.1)
    assert torch.linalg.vector_norm(ours - theirs.detach()) < 0.02 * torch.linalg.vector_norm(ours - start)
