from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from algoperf_torch.kernels.adafactor import adafactor_matrices_, adafactor_vectors_, fused, reference
from algoperf_torch.kernels.launch import MatrixTable

OPTIONS = {
    "beta1": 0.9, "beta2": 0.99, "decay_rate": None, "clip": 0.7, "scale_parameter": False, "weight_decay": 0.1,
}  # fmt: skip
PAPER = OPTIONS | {"decay_rate": -0.8, "scale_parameter": True}
SETTINGS = pytest.mark.parametrize("options", [OPTIONS, PAPER], ids=["algoperf", "paper"])
GIVEN = {"lr": 0.01, "grad_scale": 0.7}
MATRICES = [(1, 1), (32, 64), (33, 65), (5, 150), (70, 7), (64, 128), (40, 0)]
DTYPES = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "mixed": (torch.float32, torch.bfloat16, torch.float32),
}


@SETTINGS
@pytest.mark.parametrize("absent", [(), ("exp_avgs",)], ids=["momentum", "plain"])
def test_vectors_agree_with_reference(proofs, layout, absent, options):
    layout.shapes = [shape for shape in layout.shapes if shape != (0,)]  # the mean over nothing is not a number
    proofs.agree(adafactor_vectors_, layout, options, GIVEN, absent)


@pytest.mark.parametrize("absent", [(), ("exp_avgs",)], ids=["momentum", "plain"])
def test_vectors_operator(proofs, absent):
    proofs.operator(adafactor_vectors_, OPTIONS, GIVEN, absent)


def matrices(layouts, dtypes, *, momentum: bool, offset: int = 0, shapes=MATRICES):
    generator = torch.Generator().manual_seed(0)
    layout = layouts([shape for shape in shapes if 0 not in shape], dtypes, offset)
    params, grads = (layout.column(generator, name, place) for place, name in enumerate(("params", "grads")))
    exp_avgs = layout.column(generator, "exp_avgs", 2) if momentum else []
    device = params[0].device
    rows = [torch.rand(len(param), generator=generator).to(device) for param in params]
    cols = [torch.rand(param.shape[1], generator=generator).to(device) for param in params]
    steps = [torch.tensor(float(3 + i), device=device) for i in range(len(params))]
    given = (torch.tensor(value, device=device) for value in GIVEN.values())
    return layout, [params, grads, exp_avgs, rows, cols, steps, *given]


@SETTINGS
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_matrices_agree_with_reference(layouts, dtypes, offset, momentum, options):
    layout, actual = matrices(layouts, DTYPES[dtypes], momentum=momentum, offset=offset)
    _, expected = matrices(layouts, DTYPES[dtypes], momentum=momentum, offset=offset)
    table = MatrixTable()
    for _ in range(2):  # the second launch needs what the first left behind
        fused.adafactor_matrices_(*actual, **options, table=table)
        reference.adafactor_matrices_(*expected, **options)
    for ours, theirs in zip(actual[:5], expected[:5], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            rtol = 1e-5 if a.dtype is torch.float32 else 2**-7
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-6)
    for buffer in layout.buffers:
        assert torch.cat([buffer[:16], buffer[-16:]]).isnan().all()


@settings(max_examples=6, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 150)), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.bfloat16]), min_size=1, max_size=3),
    offset=st.integers(0, 3),
    momentum=st.booleans(),
    options=st.sampled_from([OPTIONS, PAPER]),
)
def test_any_matrices(layouts, shapes, dtypes, offset, momentum, options):
    how = {"momentum": momentum, "offset": offset, "shapes": shapes}
    (_, actual), (_, expected) = (matrices(layouts, dtypes, **how) for _ in range(2))
    fused.adafactor_matrices_(*actual, **options)
    reference.adafactor_matrices_(*expected, **options)
    for ours, theirs in zip(actual[:5], expected[:5], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5 if a.dtype is torch.float32 else 2**-7, atol=1e-6)


def test_empty_matrices(layouts, device):
    empty = [torch.zeros(40, 0, device=device)]
    fused.adafactor_matrices_(
        empty, empty, [], [torch.zeros(40, device=device)], [torch.zeros(0, device=device)],
        [torch.ones((), device=device)], torch.tensor(0.1), **OPTIONS,
    )  # fmt: skip


def test_a_dead_row_and_a_dead_column(device):
    """The product of their two statistics is no float32; what has no gradient does not move."""
    grad = torch.rand(40, 70, device=device) + 0.5
    grad[3], grad[:, 5] = 0.0, 0.0
    for update in (fused.adafactor_matrices_, reference.adafactor_matrices_):
        param, (row, column) = torch.zeros_like(grad), (torch.zeros(size, device=device) for size in grad.shape)
        for t in (1.0, 2.0):
            step, lr = torch.tensor(t, device=device), torch.tensor(0.1, device=device)
            update([param], [grad], [], [row], [column], [step], lr, **OPTIONS)
        assert param.isfinite().all()
        assert torch.equal(param == 0, grad == 0)


@pytest.mark.parametrize("shape", [(6, 9), (30,)])
def test_reference_is_torch_adafactor(shape):
    ours = torch.linspace(-2, 2, 54)[: torch.Size(shape).numel()].reshape(shape).clone()
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = torch.optim.Adafactor([theirs], lr=0.05, eps=(1e-15, 1e-3), weight_decay=0.1)
    state = [torch.zeros(shape[0]), torch.zeros(shape[-1])] if len(shape) == 2 else [torch.zeros(shape)]
    update = reference.adafactor_matrices_ if len(shape) == 2 else reference.adafactor_vectors_
    step = torch.zeros(())
    for _ in range(50):
        theirs.grad = theirs.detach().cos() * 3
        step += 1
        update([ours], [ours.cos() * 3], [], *([s] for s in state), [step], torch.tensor(0.05), **PAPER | {"clip": 1.0})
        optimizer.step()  # which limits lr by 1 / sqrt(t), still above 0.05
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [True, False])
def test_matrices_operator(layouts, momentum):
    make = lambda: matrices(layouts, (torch.float32,), momentum=momentum, shapes=[(3, 4), (2, 5)])[1]  # noqa: E731
    torch.library.opcheck(adafactor_matrices_.operator, tuple(make()), OPTIONS)
    compiled = torch.compile(
        lambda *inputs: adafactor_matrices_(*inputs, **OPTIONS), fullgraph=True, backend="aot_eager"
    )
    actual, expected = make(), make()
    compiled(*actual)
    adafactor_matrices_(*expected, **OPTIONS)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
