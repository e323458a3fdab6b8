from __future__ import annotations

import torch

from algoperf_torch.kernels.lamb import lamb_

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.1}
GIVEN = {"lr": 0.01, "grad_scale": 0.7}


def test_kernel_agrees_with_reference(proofs, layout):
    proofs.agree(lamb_, layout, OPTIONS, GIVEN)


def test_norms_span_all_programs_of_a_tensor(proofs, layouts):
    proofs.agree(lamb_, layouts([(2048 * 5 + 3,), (7,), (4096,)]), OPTIONS, GIVEN)


def test_counters_are_ready_for_the_next_update(proofs, layouts, device):
    """The second launch with one table needs what the first left behind."""
    from algoperf_torch.kernels.launch import TensorTable

    table, one, two = TensorTable(), *(proofs.inputs(lamb_, layouts([(5000,), (3,)]), GIVEN) for _ in range(2))
    for _ in range(3):
        proofs.fused(lamb_)(**one, **OPTIONS, table=table)
        lamb_.reference(**two, **OPTIONS)
    torch.testing.assert_close(one["params"], two["params"], rtol=1e-5, atol=1e-6)


def test_operator(proofs):
    proofs.operator(lamb_, OPTIONS, GIVEN)


def test_zero_parameters_move_as_in_adamw():
    """The ratio is 1 where the parameter or its update has no length."""
    param = torch.zeros(4)
    lamb_(
        [param], [torch.tensor([1.0, -1.0, 2.0, 0.0])], [torch.zeros(4)], [torch.zeros(4)], [torch.ones(())],
        torch.tensor(0.5), beta1=0.9, beta2=0.999, eps=0.1, weight_decay=0.1,
    )  # fmt: skip
    torch.testing.assert_close(param, torch.tensor([-0.5 / 1.1, 0.5 / 1.1, -1.0 / 2.1, 0.0]))


def test_transcription_of_the_paper():
    """Algorithm 2 in float64 on one layer."""
    x, m, v = [0.5, -1.0], [0.0, 0.0], [0.0, 0.0]
    param, state = torch.tensor(x, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for t in range(1, 20):
        g = [2 * value - 1 for value in x]
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        r = [(a / (1 - 0.9**t)) / ((b / (1 - 0.999**t)) ** 0.5 + 1e-6) for a, b in zip(m, v, strict=True)]
        u = [a + 0.1 * b for a, b in zip(r, x, strict=True)]
        ratio = sum(value**2 for value in x) ** 0.5 / sum(value**2 for value in u) ** 0.5
        x = [value - 0.02 * ratio * move for value, move in zip(x, u, strict=True)]
        lamb_(
            [param], [2 * param - 1], [state[0]], [state[1]], [torch.tensor(float(t))],
            torch.tensor(0.02, dtype=torch.float64), **OPTIONS,
        )  # fmt: skip
    torch.testing.assert_close(param, torch.tensor(x, dtype=torch.float64), rtol=0, atol=1e-12)
