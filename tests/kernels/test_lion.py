from __future__ import annotations

import torch

from algoperf_torch.kernels.lion import lion_

OPTIONS = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
GIVEN = {"lr": 0.01, "grad_scale": 0.7}


def test_kernel_agrees_with_reference(proofs, layout):
    proofs.agree(lion_, layout, OPTIONS, GIVEN)


def test_operator(proofs):
    proofs.operator(lion_, OPTIONS, GIVEN)


def test_a_step_has_the_size_of_the_learning_rate():
    """Whatever the gradient's scale, every weight moves by exactly the learning rate when nothing decays."""
    param, grad = torch.zeros(5), torch.tensor([1e-30, -1e30, 0.0, 3.0, -2.0])
    lion_([param], [grad], [torch.zeros(5)], torch.tensor(0.25), beta1=0.9, beta2=0.99, weight_decay=0.0)
    assert param.tolist() == [-0.25, 0.25, 0.0, -0.25, 0.25]
