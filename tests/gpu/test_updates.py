"""Updates on a device: graphs, streams, real shapes, repetition, and the optimizers of PyTorch beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from algoperf_torch.errors import UsageError
from algoperf_torch.kernels.adam import adam_
from algoperf_torch.kernels.grad_norm import clip_coefficient
from algoperf_torch.kernels.lamb import lamb_
from algoperf_torch.kernels.launch import TensorTable

pytestmark = pytest.mark.gpu
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def state(shapes, device, seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    draw = lambda: tuple(torch.randn(shape, generator=generator, device=device) for shape in shapes)  # noqa: E731
    params, grads, m = draw(), draw(), draw()
    v = tuple(x.square() for x in draw())
    steps = (torch.tensor(3.0, device=device),) * len(shapes)
    return [params, grads, m, v, (), steps, torch.tensor(1e-2, device=device)]


def clone(inputs):
    return [tuple(x.clone() for x in item) if isinstance(item, tuple) else item.clone() for item in inputs]


@pytest.mark.parametrize("workload", ["imagenet_resnet", "wmt", "ogbg", "librispeech_conformer"])
def test_adamw_over_a_workload(device, workload):
    shapes = json.loads((GOLDEN / f"{workload}.shapes.json").read_text())["shapes"]
    actual = state([tuple(shape) for shape in shapes], device)
    expected = clone(actual)
    adam_.with_table(TensorTable(), *actual, **OPTIONS)
    adam_.reference(*expected, **OPTIONS)
    for ours, theirs in zip(actual[:4], expected[:4], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_hundred_steps_beside_torch(device):
    params = [torch.randn(1000, 33, device=device), torch.randn(7, device=device)]
    leaves = [torch.nn.Parameter(param.clone()) for param in params]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.1, fused=True)
    m, v = ([torch.zeros_like(param) for param in params] for _ in range(2))
    step, table = torch.zeros((), device=device), TensorTable()
    for _ in range(100):
        grads = [param.cos() * 3 for param in params]
        for leaf in leaves:
            leaf.grad = leaf.detach().cos() * 3
        step += 1
        adam_.with_table(table, params, grads, m, v, [], [step, step], torch.tensor(1e-2, device=device), **OPTIONS)
        optimizer.step()
    torch.testing.assert_close(params, [leaf.detach() for leaf in leaves], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", [adam_, lamb_], ids=lambda update: update.name)
def test_results_repeat_to_the_last_bit(device, update):
    shapes = [(1000, 1000), (3,), (70_001,)]
    runs = []
    for _ in range(5):
        inputs = state(shapes, device)
        if update is lamb_:
            del inputs[4]
        _, scale = clip_coefficient(list(inputs[1]), 1.0)
        update(*inputs, scale, **OPTIONS)
        runs.append(inputs[0])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_a_captured_update_follows_step_and_learning_rate(device):
    inputs, table = state([(5000,), (3, 7)], device), TensorTable()
    expected = clone(inputs)
    adam_.with_table(table, *clone(inputs), **OPTIONS)  # compiles
    captured = clone(inputs)
    adam_.with_table(table, *captured, **OPTIONS)
    adam_.reference(*expected, **OPTIONS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        adam_.with_table(table, *captured, **OPTIONS)
    for rate in (1e-2, 5e-3, 1e-3):
        for inputs in (captured, expected):
            inputs[5][0].add_(1)
            inputs[6].fill_(rate)
        graph.replay()
        adam_.reference(*expected, **OPTIONS)
    torch.cuda.synchronize()
    torch.testing.assert_close(captured[0], expected[0], rtol=1e-5, atol=1e-6)


def test_gradients_made_inside_a_captured_graph(device):
    """Their addresses are new while the graph is captured: the upload becomes a part of the graph."""
    weight = torch.randn(300, 40, device=device, requires_grad=True)
    m, v, step = torch.zeros_like(weight), torch.zeros_like(weight), torch.ones((), device=device)
    data, lr, table = torch.randn(40, device=device), torch.tensor(1e-2, device=device), TensorTable()

    def train_step():
        (grad,) = torch.autograd.grad((weight @ data).square().sum(), weight)
        with torch.no_grad():
            adam_.with_table(table, [weight], [grad], [m], [v], [], [step], lr, **OPTIONS)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train_step()
    torch.cuda.current_stream().wait_stream(stream)
    start = [x.detach().clone() for x in (weight, m, v)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train_step()
    graph.replay()
    grad = 2 * torch.outer(start[0] @ data, data)
    adam_.reference([start[0]], [grad], [start[1]], [start[2]], [], [step], lr, **OPTIONS)
    torch.testing.assert_close(weight.detach(), start[0], rtol=1e-4, atol=1e-5)

    with pytest.raises(UsageError, match="Run one update first"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        train_step()


def test_the_first_update_cannot_be_captured(device):
    inputs = state([(10,)], device)
    with pytest.raises(UsageError, match="Run one update before capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        adam_.with_table(TensorTable(), *inputs, **OPTIONS)


def test_a_compiled_step_uses_the_kernel(device):
    from algoperf_torch.kernels import registry

    actual = state([(300,), (4, 5)], device)
    expected = clone(actual)
    torch.compile(lambda *inputs: adam_(*inputs, **OPTIONS), fullgraph=True)(*actual)
    adam_.reference(*expected, **OPTIONS)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    assert "adam_" in registry.used()


def test_reference_can_be_chosen(device):
    from algoperf_torch.kernels import registry

    try:
        registry.choose("reference")
        assert not registry.runs_fused("adam_", device, update=True)
        registry.choose("fused")
        assert registry.runs_fused("cross_entropy", device)
    finally:
        registry.choose("default")


def test_another_stream(device):
    inputs = state([(100_000,)], device)
    expected = clone(inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        adam_(*inputs, **OPTIONS)
    stream.synchronize()
    adam_.reference(*expected, **OPTIONS)
    torch.testing.assert_close(inputs[0], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one():
    inputs = state([(5000,)], torch.device("cuda", 1))
    expected = clone(inputs)
    adam_(*inputs, **OPTIONS)
    adam_.reference(*expected, **OPTIONS)
    torch.testing.assert_close(inputs[0], expected[0], rtol=1e-5, atol=1e-6)
