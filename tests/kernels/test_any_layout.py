"""Every update over lists of tensors that hypothesis draws: ragged shapes, mixed dtypes, views that begin anywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algoperf_torch.kernels.adafactor import adafactor_vectors_
from algoperf_torch.kernels.ademamix import ademamix_
from algoperf_torch.kernels.ema import ema_
from algoperf_torch.kernels.grad_norm import fused as grad_norm
from algoperf_torch.kernels.grad_norm import reference as grad_norm_reference
from algoperf_torch.kernels.lamb import lamb_
from algoperf_torch.kernels.lion import lion_
from algoperf_torch.kernels.muon import muon_apply_, muon_momentum_
from algoperf_torch.kernels.schedule_free import schedule_free_
from algoperf_torch.kernels.sgd import sgd_

ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.1}
SCALED = {"lr": 0.01, "grad_scale": 0.7}
ADAFACTOR = {"beta1": 0.9, "beta2": 0.99, "clip": 0.7, "weight_decay": 0.1}
CASES = {  # update, options to choose from, 0-d tensors, lists that may be empty
    "adafactor": (
        adafactor_vectors_,
        [
            ADAFACTOR | {"decay_rate": None, "scale_parameter": False},
            ADAFACTOR | {"decay_rate": -0.8, "scale_parameter": True},
        ],
        SCALED,
        ["exp_avgs"],
    ),
    "ademamix": (ademamix_, [ADAM | {"beta3": 0.9999, "alpha": 3.0, "mix_warmup": 30}], SCALED, []),
    "ema": (ema_, [{}], {"weight": 0.1}, []),
    "lamb": (lamb_, [ADAM], SCALED, []),
    "lion": (lion_, [{"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}], SCALED, []),
    "muon, before": (
        muon_momentum_,
        [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": False}],
        {"grad_scale": 0.7},
        [],
    ),
    "muon, after": (muon_apply_, [{"weight_decay": 0.1}], {"lr": 0.01}, []),
    "schedule-free": (schedule_free_, [ADAM], SCALED, ["exp_avg_sqs"]),
    "sgd": (
        sgd_,
        [{"momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov} for nesterov in (True, False)],
        SCALED,
        ["momentum_buffers"],
    ),
}
SHAPES = st.lists(
    st.one_of(
        st.integers(1, 5000).map(lambda size: (size,)),
        st.lists(st.integers(1, 15), max_size=3).map(tuple),
        st.sampled_from([(2047,), (2048,), (2049,), (1,), ()]),
    ),
    min_size=1,
    max_size=12,
)
DTYPES = st.lists(st.sampled_from([torch.float32, torch.bfloat16]), min_size=1, max_size=4)
OFFSETS = st.integers(0, 3)
FEW = settings(
    max_examples=6, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("case", CASES)
@FEW
@given(data=st.data())
def test_update(proofs, layouts, case, data):
    update, choices, given_, may_lack = CASES[case]
    layout = layouts(data.draw(SHAPES), data.draw(DTYPES), data.draw(OFFSETS))
    absent = may_lack if data.draw(st.booleans()) else []
    scalars = dict(given_)
    if "grad_scale" in scalars and data.draw(st.booleans()):
        del scalars["grad_scale"]
    proofs.agree(update, layout, data.draw(st.sampled_from(choices)), scalars, absent)


@FEW
@given(shapes=SHAPES, dtypes=DTYPES, offset=OFFSETS, max_norm=st.floats(0.01, 1e4))
def test_gradient_norm(layouts, shapes, dtypes, offset, max_norm):
    grads = layouts(shapes, dtypes, offset).column(torch.Generator().manual_seed(0), "grads", 0)
    found = grad_norm.clip_coefficient(grads, max_norm)
    expected = grad_norm_reference.clip_coefficient([grad.double() for grad in grads], max_norm)
    torch.testing.assert_close([value.double() for value in found], list(expected), rtol=1e-6, atol=0)
