"""The optimizers through their kernels on a device: equal to plain PyTorch, without waiting for it, compiled once."""

from __future__ import annotations

import pytest
import torch

from algoperf_torch.kernels import registry
from algoperf_torch.optim import registry as algorithms
from algoperf_torch.runner.submissions import load_submission

pytestmark = pytest.mark.gpu
WAITS = {"shampoo", "soap"}  # eigendecompositions are looked at on the host
NAMES = [name for name in algorithms.algorithm_names() if name != "prodigy" and not name.endswith("_default")]
SHAPES = [(), (63,), (2049,), (40, 40), (4, 3, 3, 3), (300, 1000)]
SQUARES = [(), (63,), (40, 40), (6, 2, 3)]  # the null space of a rank-deficient factor has no unique basis
OPTIONS = {"muon": {"ns_dtype": "float32"}, "soap": {"eps": 1e-2}}


@pytest.fixture(autouse=True)
def choice():
    yield
    registry.choose("default")


def train(name: str, device: torch.device, *, steps: int, number: bool = False) -> tuple[list, list, list]:
    """(parameters, how far they moved, kernels compiled in each step)"""
    import triton

    compiled: list[str] = []
    hook = triton.knobs.runtime.jit_post_compile_hook
    triton.knobs.runtime.jit_post_compile_hook = lambda *_, **info: compiled.append(str(info.get("repr")))
    generator = torch.Generator(device).manual_seed(0)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator, device=device))
        for shape in (SQUARES if name == "soap" else SHAPES)
    ]
    start = [param.detach().clone() for param in params]
    optimizer = load_submission(name).algorithm.optimizer_class(
        params, **{"lr": 0.02, "weight_decay": 0.1, **OPTIONS.get(name, {})}
    )
    counts = []
    try:
        for step in range(steps):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator, device=device)
            lr, scale = 0.02 / (1 + step % 3), torch.full((), 0.5, device=device)
            for group in optimizer.param_groups:
                group["lr"] = lr if number else torch.full((), lr, device=device)
            settled = step >= 2 and name not in WAITS
            torch.cuda.set_sync_debug_mode("error" if settled else "default")
            optimizer.step(grad_scale=scale)
            torch.cuda.set_sync_debug_mode("default")
            counts.append(len(compiled))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        triton.knobs.runtime.jit_post_compile_hook = hook
    return [param.detach() for param in params], start, counts


@pytest.mark.parametrize("number", [False, True], ids=["tensor", "number"])
@pytest.mark.parametrize("name", NAMES)
def test_fused_and_plain_are_one_optimizer(name, number, device):
    fused, start, counts = train(name, device, steps=20, number=number)
    assert counts[-1] == counts[1], "a kernel was compiled again"
    registry.choose("reference")
    plain, _, counts = train(name, device, steps=20, number=number)
    assert counts[-1] == 0
    tolerance = 1e-3 if name in ("muon", "shampoo", "soap") else 1e-4
    for ours, theirs, first in zip(fused, plain, start, strict=True):
        bound = tolerance * float((theirs - first).abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["adamw", "nadamw", "lamb", "schedule_free_adamw", "lion", "muon"])
def test_a_captured_step_follows_its_learning_rate(name, device):
    results = []
    for captured in (True, False):
        generator = torch.Generator(device).manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=generator, device=device)) for shape in SHAPES]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, device=device)
        lr = torch.full((), 0.02, device=device)
        optimizer = load_submission(name).algorithm.optimizer_class(params, **{"lr": lr, **OPTIONS.get(name, {})})
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels are compiled, tables and states made
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
        for step in range(3):
            lr.fill_(0.02 / (1 + step))
            graph.replay() if captured else optimizer.step()
        results.append([param.detach() for param in params])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
