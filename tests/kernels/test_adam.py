from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algoperf_torch.kernels.adam import adam_
from algoperf_torch.kernels.adam.reference import adam_ as reference_adam_

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "average_decay": 0.9}
GIVEN = {"lr": 0.01, "grad_scale": 0.7}
SWITCHES = [{}, {"nesterov": True}, {"cautious": True}, {"nesterov": True, "cautious": True}]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(switches) or "plain")
@pytest.mark.parametrize("absent", [(), ("averages",)], ids=["averaged", "alone"])
def test_kernel_agrees_with_reference(proofs, layout, switches, absent):
    proofs.agree(adam_, layout, OPTIONS | switches, GIVEN, absent)


def test_kernel_without_momentum_and_scale(proofs, layout):
    proofs.agree(adam_, layout, OPTIONS | {"beta1": 0.0, "weight_decay": 0.0}, {"lr": 0.01}, ("averages",))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16]), min_size=1, max_size=3),
    offset=st.integers(0, 3),
)
def test_any_sizes_dtypes_and_alignment(proofs, layouts, sizes, dtypes, offset):
    proofs.agree(adam_, layouts([(size,) for size in sizes], dtypes, offset), OPTIONS | {"nesterov": True}, GIVEN)


def test_four_hundred_tensors(proofs, layouts):
    sizes = torch.randint(1, 300, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    proofs.agree(adam_, layouts([(size,) for size in sizes]), OPTIONS, GIVEN)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join(switches) or "plain")
def test_operator(proofs, switches):
    proofs.operator(adam_, OPTIONS | switches, GIVEN)


def test_reference_is_torch_adamw():
    ours, theirs = torch.linspace(-2, 2, 30), torch.nn.Parameter(torch.linspace(-2, 2, 30))
    m, v, step = torch.zeros(30), torch.zeros(30), torch.zeros(())
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for _ in range(100):
        theirs.grad = theirs.detach().cos() * 3
        step += 1
        reference_adam_(
            [ours], [ours.cos() * 3], [m], [v], [], [step], torch.tensor(0.01),
            beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1,
        )  # fmt: skip
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_bias_correction_keeps_its_digits(proofs, device, beta):
    """The first step of Adam has the size of the learning rate, which it has only if 1 - beta^t is exact."""
    param, grad = torch.zeros(3, device=device), torch.tensor([1e-3, -5.0, 200.0], device=device)
    state = [[torch.zeros(3, device=device)] for _ in range(2)]
    proofs.fused(adam_)(
        [param], [grad], *state, [], [torch.ones((), device=device)], torch.tensor(1.0, device=device),
        beta1=beta, beta2=beta, eps=0.0, weight_decay=0.0,
    )  # fmt: skip
    torch.testing.assert_close(param, -grad.sign(), rtol=3e-6, atol=0)
