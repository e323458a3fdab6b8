"""Runs the Triton code itself: by its interpreter on the CPU, or on a device with ALGOPERF_TEST_DEVICE=cuda."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algoperf_torch.kernels.interpreter import enable

DEVICE = os.environ.get("ALGOPERF_TEST_DEVICE", "cpu")

if DEVICE == "cpu":
    enable()
else:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by deterministic algorithms


# ---------------------------------------------------------------- proofs that hold for every operation

GUARD = 16  # elements of NaN before and after every tensor
SCALAR_LISTS = ("steps", "weights", "factors")
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-6}}


@dataclass
class Layout:
    """Sizes, dtypes and alignment of the tensors of one update."""

    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[torch.dtype] = (torch.float32,)
    offset: int = 0  # elements by which the first column is shifted from a 16-byte boundary
    buffers: list[Tensor] = field(default_factory=list)

    def column(self, generator: torch.Generator, name: str, place: int) -> list[Tensor]:
        tensors = []
        for i, shape in enumerate(self.shapes):
            dtype = self.dtypes[(i + place) % len(self.dtypes)]
            size = int(np.prod(shape))
            buffer = torch.full((size + 2 * GUARD + self.offset,), torch.nan, dtype=dtype)
            values = torch.randn(size, generator=generator)
            start = GUARD + (self.offset if place == 0 else 0)
            buffer[start : start + size] = values.square() if name.endswith(("_sqs", "variances")) else values
            self.buffers.append(buffer := buffer.to(DEVICE))
            tensors.append(buffer[start : start + size].view(shape))
        return tensors


LAYOUTS = {
    "sizes": Layout([(1,), (63,), (1024,), (1025,), (2048,), (2049,), (0,), (), (5, 7, 3), (33, 130)]),
    "bfloat16": Layout([(1,), (63,), (1024,), (1025,), (4096,), (40, 61)], (torch.bfloat16,)),
    "mixed": Layout([(1,), (2048,), (1025,), (3000,), (7, 11)], (torch.float32, torch.bfloat16, torch.float32)),
    "misaligned": Layout([(2048,), (1025,), (3, 1000)], offset=1),
}


@pytest.fixture(params=LAYOUTS, ids=str)
def layout(request: pytest.FixtureRequest) -> Layout:
    known = LAYOUTS[request.param]
    return Layout(known.shapes, known.dtypes, known.offset)


@pytest.fixture(scope="session")
def layouts() -> type[Layout]:
    return Layout


class UpdateProofs:
    """What is asked of every in-place update of many tensors; `given` are its 0-d tensors, `absent` its empty lists."""

    def inputs(
        self, update: Any, layout: Layout, given: dict[str, float], absent: Sequence[str] = (), seed: int = 0
    ) -> dict:
        generator = torch.Generator().manual_seed(seed)
        inputs: dict[str, Any] = {}
        for place, (name, parameter) in enumerate(inspect.signature(update.reference).parameters.items()):
            if parameter.kind is parameter.KEYWORD_ONLY:
                break
            if name in given:
                inputs[name] = torch.tensor(given[name], device=DEVICE)
            elif name in absent:
                inputs[name] = []
            elif name in SCALAR_LISTS:
                low, high = (1, 50) if name == "steps" else (0, 1)
                values = [low + (high - low) * i / len(layout.shapes) for i in range(len(layout.shapes))]
                inputs[name] = [torch.tensor(float(round(v) if low else v), device=DEVICE) for v in values]
            elif "Sequence" in str(parameter.annotation):
                inputs[name] = layout.column(generator, name, place)
        return inputs

    def fused(self, update: Any) -> Callable[..., None]:
        package = update.reference.__module__.rpartition(".")[0]
        return getattr(import_module(f"{package}.fused"), update.name)

    def agree(
        self,
        update: Any,
        layout: Layout,
        options: dict[str, Any],
        given: dict[str, float],
        absent: Sequence[str] = (),
        **how: Any,
    ) -> None:
        """The kernel does what the reference does, to the rounding, and touches nothing else."""
        actual = self.inputs(update, layout, given, absent)
        expected, exact, before = (
            map_tensors(actual, change) for change in (Tensor.clone, Tensor.double, Tensor.clone)
        )
        self.fused(update)(**actual, **options, **how)
        update.reference(**expected, **options)
        update.reference(**exact, **options)
        mutated = {argument.name for argument in update.operator._schema.arguments if argument.alias_info is not None}
        for name, column in actual.items():
            if not isinstance(column, list):
                continue
            for i, tensor in enumerate(column):
                if name not in mutated:
                    assert torch.equal(tensor, before[name][i]), f"{name}[{i}] was rewritten"
                    continue
                message = f"{name}[{i}], {tuple(tensor.shape)} {tensor.dtype}"
                tolerance = TOLERANCE[tensor.dtype]
                torch.testing.assert_close(
                    tensor, expected[name][i], msg=lambda text, m=message: f"{m}: {text}", **tolerance
                )
                if torch.bfloat16 not in layout.dtypes:
                    torch.testing.assert_close(tensor.double(), exact[name][i], **tolerance)
        for buffer in layout.buffers:
            assert torch.cat([buffer[:GUARD], buffer[-GUARD:]]).isnan().all(), "written outside of a tensor"

    def operator(
        self, update: Any, options: dict[str, Any], given: dict[str, float], absent: Sequence[str] = ()
    ) -> None:
        """The registered operator is sound; it compiles without a break, and once for all learning rates and steps."""
        make = lambda: self.inputs(update, Layout([(3,), (4, 5)]), given, absent)  # noqa: E731
        torch.library.opcheck(update.operator, tuple(make().values()), options)
        torch.compiler.reset()  # all operations share the code object of the next line
        compiled = torch.compile(lambda inputs: update(**inputs, **options), fullgraph=True, backend="aot_eager")
        actual, expected = make(), make()
        for rate in (1.0, 0.5, 0.25):
            with torch.compiler.set_stance("default" if rate == 1.0 else "fail_on_recompile"):
                for inputs, run in ((actual, compiled), (expected, lambda inputs: update(**inputs, **options))):
                    for name in given:
                        inputs[name] = torch.tensor(given[name] * rate, device=DEVICE)
                    run(inputs)
        for name, column in actual.items():
            torch.testing.assert_close(column, expected[name], rtol=0, atol=0)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return [map_tensors(item, change) for item in value]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` holds NaN, so that an element that a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def proofs() -> UpdateProofs:
    return UpdateProofs()


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)
