from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels.schedule_free import schedule_free_
from algoperf_torch.kernels.schedule_free.reference import schedule_free_ as reference_schedule_free_

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
GIVEN = {"lr": 0.01, "grad_scale": 0.7}


@pytest.mark.parametrize("absent", [(), ("exp_avg_sqs",)], ids=["adamw", "sgd"])
def test_kernel_agrees_with_reference(proofs, layout, absent):
    proofs.agree(schedule_free_, layout, OPTIONS, GIVEN, absent)


@pytest.mark.parametrize("absent", [(), ("exp_avg_sqs",)], ids=["adamw", "sgd"])
def test_operator(proofs, absent):
    proofs.operator(schedule_free_, OPTIONS, GIVEN, absent)


@pytest.mark.parametrize("adam", [True, False])
def test_transcription_of_the_paper(adam):
    """Algorithm 1 in float64, with x, y and z written out; y must be (1 - beta) z + beta x at every step."""
    beta1, beta2, lr, decay = 0.9, 0.99, 0.02, 0.1
    z = x = 0.7
    nu, weight_sum = 0.0, 0.0
    y_tensor, z_tensor, v_tensor = (torch.tensor([value], dtype=torch.float64) for value in (0.7, 0.7, 0.0))
    for t in range(1, 40):
        y = (1 - beta1) * z + beta1 * x
        assert abs(y_tensor.item() - y) < 1e-12
        g = 2 * y - 1
        nu = beta2 * nu + (1 - beta2) * g * g
        direction = g / ((nu / (1 - beta2**t)) ** 0.5 + 1e-8) if adam else g
        z -= lr * (direction + decay * y)
        weight_sum += lr**2
        c = lr**2 / weight_sum
        x = (1 - c) * x + c * z
        reference_schedule_free_(
            [y_tensor], [2 * y_tensor - 1], [z_tensor], [v_tensor] if adam else [], [torch.tensor(float(t))],
            [torch.tensor(c, dtype=torch.float64)], torch.tensor(lr, dtype=torch.float64),
            beta1=beta1, beta2=beta2, eps=1e-8, weight_decay=decay,
        )  # fmt: skip
    assert abs(z_tensor.item() - z) < 1e-12
