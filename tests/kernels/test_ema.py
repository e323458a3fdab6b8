from __future__ import annotations

import torch

from algoperf_torch.kernels.ema import ema_


def test_kernel_agrees_with_reference(proofs, layout):
    proofs.agree(ema_, layout, {}, {"weight": 0.1})


def test_operator(proofs):
    proofs.operator(ema_, {}, {"weight": 0.1})


def test_small_weights_are_not_lost():
    """(1 - w) a + w p would drift by its own rounding; a + w (p - a) keeps an average of equal weights exact."""
    average, param = torch.full((8,), 0.1), torch.full((8,), 0.1)
    for _ in range(1000):
        ema_([average], [param], torch.tensor(1e-4))
    assert torch.equal(average, param)
