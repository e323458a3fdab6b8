"""The optimizers of the registry through their kernels, and as plain PyTorch: one mathematics, one state."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

from algoperf_torch.kernels import launch, registry
from algoperf_torch.optim import registry as algorithms
from algoperf_torch.optim.adamw import AdamW
from algoperf_torch.optim.base import BaseOptimizer, OptimizerAlgorithm
from algoperf_torch.optim.fused import FusedUpdate
from algoperf_torch.optim.lion import Lion
from algoperf_torch.optim.wrappers import exponential_average
from algoperf_torch.runner.submissions import load_submission

TINY = Path(__file__).parents[1] / "optim" / "tiny.py"
NO_KERNEL = {"prodigy"}
SHAPES = [(), (1,), (63,), (2049,), (33, 40), (7, 5), (4, 3, 3, 3)]
SQUARES = [(1,), (63,), (5, 5), (6, 2, 3)]  # the null space of a rank-deficient factor has no unique basis
STEPS = 20
OPTIONS = {
    "ademamix": {"mix_warmup": 12},
    "lion": {"lr": 0.01},
    "muon": {"ns_dtype": "float32"},
    "shampoo": {"start_preconditioning_step": 10, "precondition_frequency": 5, "block_size": 40},
    "soap": {
        "eps": 1e-2
    },  # in its own eigenbasis the first gradient is diagonal: the rest is rounding, and must not count
}
PARTS = {  # operations, where there are several
    "adafactor": ("adafactor_matrices_", "adafactor_vectors_"),
    "muon": ("adam_", "muon_apply_", "muon_momentum_", "newton_schulz"),
    "shampoo": ("adam_", "symmetric_update_"),
    "soap": ("adam_", "symmetric_update_"),
}
TOLERANCE = {"muon": 1e-3, "shampoo": 1e-3, "soap": 1e-3}  # of the largest move; else 1e-4


class Run:
    """An optimizer with its parameters, and gradients that are the same whenever they are drawn."""

    def __init__(self, name: str, device: torch.device, *, choice: str) -> None:
        self.choice, self.device = choice, device
        generator = torch.Generator().manual_seed(0)
        shapes = SQUARES if name == "soap" else SHAPES
        values = [torch.randn(shape, generator=generator) for shape in shapes]
        if name != "soap":
            values += [torch.randn(9, 30, generator=generator).T, torch.randn(50, generator=generator).bfloat16()]
        self.start = values
        self.params = [torch.nn.Parameter(value.to(device, copy=True)) for value in values]
        assert name == "soap" or not self.params[-2].is_contiguous()
        self.optimizer = load_submission(name).algorithm.optimizer_class(
            self.params, **{"lr": torch.tensor(0.02, device=device), "weight_decay": 0.1, **OPTIONS.get(name, {})}
        )

    def train(self, first: int, last: int, *, grad_scale: float | None = None) -> list[torch.Tensor]:
        registry.choose(self.choice)
        for number in range(first, last):
            generator = torch.Generator().manual_seed(number)
            for i, (param, value) in enumerate(zip(self.params, self.start, strict=True)):
                grad = torch.randn(value.shape, generator=generator).to(self.device, value.dtype)
                late = i == 2 and number < 3  # no gradient in the first updates
                param.grad = None if late else grad
            for group in self.optimizer.param_groups:
                lr = 0.02 / (1 + number % 3)
                group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], torch.Tensor) else lr
            before = [None if param.grad is None else param.grad.clone() for param in self.params]
            scale = None if grad_scale is None else torch.tensor(grad_scale, device=self.device)
            self.optimizer.step(grad_scale=scale)
            for param, grad in zip(self.params, before, strict=True):
                assert grad is None or torch.equal(param.grad, grad), "a gradient was rewritten"
        return [param.detach().clone() for param in self.params]

    def agrees_with(self, other: Run, tolerance: float) -> None:
        for i, (ours, theirs) in enumerate(zip(self.params, other.params, strict=True)):
            move = float((theirs.detach().cpu().float() - self.start[i].float()).abs().max())
            half = ours.dtype is torch.bfloat16  # whose updates round to different sides
            bound = 2**-6 * float(ours.detach().abs().max()) if half else tolerance * move
            torch.testing.assert_close(ours, theirs, rtol=0, atol=bound, msg=lambda text, i=i: f"parameter {i}: {text}")


@pytest.fixture(autouse=True)
def kernels_on_this_device(monkeypatch, device):
    monkeypatch.setattr(registry, "DEVICES", frozenset({device.type}))
    monkeypatch.setattr(registry, "_used", set())
    yield
    registry.choose("default")


def layout(state_dict: dict) -> dict:
    def describe(value):
        return (value.shape, value.dtype, value.stride()) if isinstance(value, torch.Tensor) else value

    return {
        index: {name: describe(value) for name, value in state.items()} for index, state in state_dict["state"].items()
    }


def fused_names() -> list[str]:
    names = [name for name in algorithms.algorithm_names() if name not in NO_KERNEL]
    return [name for name in names if not name.endswith("_default")]  # the same optimizers again


@pytest.mark.parametrize("name", fused_names())
def test_fused_and_plain_are_one_optimizer(name, device):
    """Twenty updates with a parameter that gets gradients late, learning rates that change, and clipping."""
    fused, plain = (Run(name, device, choice=choice) for choice in ("default", "reference"))
    fused.train(0, STEPS, grad_scale=0.5)
    assert {*PARTS.get(name, ())} <= {*registry.used()} != set()
    plain.train(0, STEPS, grad_scale=0.5)
    tolerance = TOLERANCE.get(name, 1e-4)
    fused.agrees_with(plain, tolerance)
    assert layout(fused.optimizer.state_dict()) == layout(plain.optimizer.state_dict())
    # A checkpoint of each goes on as the other.
    for source, target in ((fused, plain), (plain, fused)):
        taken = Run(name, device, choice=target.choice)
        for param, value in zip(taken.params, source.params, strict=True):
            param.data.copy_(value.detach())
        taken.optimizer.load_state_dict(copy.deepcopy(source.optimizer.state_dict()))
        taken.train(STEPS, STEPS + 3)
        expected = copy.deepcopy(source)
        expected.train(STEPS, STEPS + 3)
        taken.agrees_with(expected, tolerance)


def test_the_walk_leaves_nothing_out(device):
    found = {
        name for name in algorithms.algorithm_names() if not Run(name, device, choice="default").optimizer.is_fused
    }
    assert found == NO_KERNEL


@pytest.mark.parametrize("name", fused_names())
def test_a_schedule_changes_no_launch(name, device, monkeypatch):
    """Numbers that a kernel is launched with, and what it is compiled for, stay the same when the learning rate changes."""
    started: list[tuple] = []
    start = launch.launch

    def record(kernel, grid, *args, **constants):
        numbers = tuple(arg if isinstance(arg, (int, float)) else type(arg) for arg in args)
        started.append((kernel.__name__, grid, numbers, tuple(constants.items())))
        start(kernel, grid, *args, **constants)

    monkeypatch.setattr(launch, "launch", record)
    run = Run(name, device, choice="default")
    launches = []
    for number in range(3, 7):
        started.clear()
        run.train(number, number + 1)
        launches.append(list(started))
    assert launches[0]
    assert launches[1:] == [launches[1]] * 3


def test_a_learning_rate_that_is_a_number(device):
    fused, plain = (Run("adamw", device, choice=choice) for choice in ("default", "reference"))
    for run in (fused, plain):
        run.optimizer.param_groups[0]["lr"] = 0.02
        run.train(0, 4)
    fused.agrees_with(plain, 1e-4)


def test_what_the_kernel_cannot_take_is_updated_all_the_same(device):
    """A strided view, and float64: beside what the kernel takes."""
    torch.manual_seed(0)
    values = [torch.randn(5, 6), torch.randn(10, 8)[:, ::2], torch.randn(7, dtype=torch.float64)]
    results = {}
    for choice in ("default", "reference"):
        registry.choose(choice)
        params = [torch.nn.Parameter(value.to(device, copy=True)) for value in values]
        params[1].data = values[1].to(device).repeat_interleave(2, dim=1)[:, ::2]
        optimizer = AdamW(params, lr=0.1)
        for param in params:
            param.grad = param.detach().cos()
        optimizer.step(grad_scale=torch.tensor(0.3, device=device))
        results[choice] = [param.detach() for param in params]
        assert registry.used() == (("adam_",) if choice == "default" else ())
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_state_is_laid_out_as_the_parameter_when_it_is_loaded(device):
    """A checkpoint may have made it contiguous."""
    runs = [Run("adamw", device, choice="default") for _ in range(2)]
    runs[0].train(0, 4)
    saved = copy.deepcopy(runs[0].optimizer.state_dict())
    for state in saved["state"].values():
        state["exp_avg"] = state["exp_avg"].contiguous().clone()
    for param, value in zip(runs[1].params, runs[0].params, strict=True):
        param.data.copy_(value.detach())
    runs[1].optimizer.load_state_dict(saved)
    for run in runs:
        run.train(4, 6)
    runs[1].agrees_with(runs[0], 1e-6)


class TestWhoHasAKernel:
    def test_other_mathematics_in_a_subclass(self, device):
        class Changed(Lion):
            def update_(self, param, grad, state, group):
                param.zero_()

        class Mixin:
            rule = staticmethod(lambda *args, **options: None)

        class Mixed(Mixin, AdamW):
            pass

        param = torch.nn.Parameter(torch.ones(3, device=device))
        param.grad = torch.ones_like(param)
        optimizer = Changed([param])
        assert not optimizer.is_fused
        optimizer.step()
        assert not param.detach().any()
        assert not Mixed([param]).is_fused

    def test_a_subclass_with_other_defaults(self, device):
        class Named(AdamW):
            def __init__(self, params):
                super().__init__(params, lr=0.5)

        assert Named([torch.nn.Parameter(torch.ones(3, device=device))]).is_fused

    def test_one_of_its_own(self, device):
        class Halving(BaseOptimizer):
            def __init__(self, params):
                super().__init__(params, {"lr": 0.0})

            def update_fused(self, update: FusedUpdate):
                assert len(update) == 1
                update.params[0].mul_(0.5)

        param = torch.nn.Parameter(torch.ones(3, device=device))
        param.grad = torch.ones_like(param)
        Halving([param]).step()
        assert torch.equal(param.detach().cpu(), torch.full((3,), 0.5))


@pytest.fixture(scope="module")
def tiny():
    """The tiny trial of tests/optim."""
    spec = importlib.util.spec_from_file_location("algoperf_tests_tiny", TINY)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif("ALGOPERF_TEST_DEVICE" in os.environ, reason="the tiny trial is one of the CPU")
class TestTrial:
    def train(self, tiny, algorithm_class, choice: str, hyperparameters: dict):
        registry.choose(choice)
        torch.manual_seed(0)
        context = tiny.build_context()
        context.set_dropout(0.0)
        algorithm = algorithm_class.from_context(context.model, hyperparameters, context)
        tiny.train(algorithm, context, tiny.build_stream(context), 6)
        return algorithm, tiny.flat(context.model)

    def test_clipping_is_folded_into_the_update(self, tiny):
        algorithm_class = OptimizerAlgorithm.over(AdamW)
        hyperparameters = {"lr": 0.02, "grad_clip": 0.05, "eps": 0.1}
        algorithm, fused = self.train(tiny, algorithm_class, "default", hyperparameters)
        assert registry.used() == ("adam_", "clip_coefficient")
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in algorithm.model.parameters()])
        assert norm > 0.05  # the gradients are as the backward pass left them
        _, plain = self.train(tiny, algorithm_class, "reference", hyperparameters)
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)
        _, unclipped = self.train(tiny, algorithm_class, "default", {"lr": 0.02, "eps": 0.1})
        assert float((fused - unclipped).abs().max()) > 1e-3

    def test_a_subclass_that_clips_otherwise(self, tiny):
        class Clipped(OptimizerAlgorithm.over(AdamW)):
            def clip_gradients(self):
                for parameter in self.model.parameters():
                    parameter.grad.zero_()

        _, weights = self.train(tiny, Clipped, "default", {"lr": 0.02, "weight_decay": 0.0, "grad_clip": 1.0})
        assert torch.equal(weights, tiny.flat(tiny.build_context().model))

    def test_average_of_the_weights(self, tiny):
        algorithm_class = exponential_average(OptimizerAlgorithm.over(AdamW))
        averages = {}
        for choice in ("default", "reference"):
            algorithm, _ = self.train(tiny, algorithm_class, choice, {"lr": 0.02})
            averages[choice] = algorithm.average()
            assert ("ema_" in registry.used()) == (choice == "default")
        torch.testing.assert_close(*averages.values(), rtol=1e-5, atol=1e-6)
