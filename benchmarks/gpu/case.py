"""What a benchmark of a kernel is: inputs, the kernel, what it competes with, and the bytes that cannot be avoided."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algoperf_torch.kernels.launch import TensorTable
from algoperf_torch.kernels.registry import Update

GOLDEN = Path(__file__).parents[2] / "tests" / "data" / "golden"
SMALL = 64  # the largest dimension of inputs that only show that a case runs
NUM_SMALL = 3  # tensors of such inputs, the largest ones
SCALARS = ("steps", "weights", "factors")  # lists of 0-d tensors

Inputs = Any
Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the report.

    Attributes:
        name: operation/variant.
        make: (device, small) -> inputs, with dimensions of up to about `small` unless that is 0. On the device "meta" they have
            shapes and dtypes only.
        fused: the kernel, called with the inputs.
        peers: name -> what it competes with: takes inputs of its own and returns the function that is timed.
        bytes: read and written at least, from the inputs.
        parameters: how many parameters are updated; 0 where that is no measure.
        goal: what the measurement is to show.
    """

    name: str
    make: Callable[[torch.device, int], Inputs]
    fused: Callable[[Inputs], Any]
    peers: Mapping[str, Callable[[Inputs], Callable[[], Any]]] = field(default_factory=dict)
    bytes: Callable[[Inputs], int]
    parameters: Callable[[Inputs], int] = lambda _: 0
    goal: str = ""


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` of a function; without a C++ compiler's minute where the case is only shown to run."""
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="inductor" if device.type == "cuda" else "aot_eager")


def compiled_reference(reference: Callable[..., Any]) -> Callable[[tuple[Any, ...]], Callable[[], Any]]:
    """The peer of a data or model path: its reference, compiled, on a tuple of arguments."""

    def peer(inputs: tuple[Any, ...]) -> Callable[[], Any]:
        device = next(value.device for value in inputs if isinstance(value, Tensor))
        function = compiled(reference, device)
        return lambda: function(*inputs)

    return peer


def num_bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def draw(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


# ---------------------------------------------------------------- updates of many tensors


def workload_shapes() -> dict[str, list[tuple[int, ...]]]:
    """The parameter shapes of each of the nine workloads."""
    return {
        file.name.removesuffix(".shapes.json"): [tuple(shape) for shape in json.loads(file.read_text())["shapes"]]
        for file in sorted(GOLDEN.glob("*.shapes.json"))
        if not file.name.startswith(("cifar", "mnist"))
    }


ONE_LARGE = {  # name -> shapes of a few large tensors
    "100M": [(10_000, 2_500)] * 4,
    "500M": [(12_500, 10_000)] * 4,
}


def shrunk(shapes: Shapes, *, small: int) -> list[tuple[int, ...]]:
    """The largest few shapes with no dimension above `small`; all of them if it is 0."""
    if not small:
        return list(shapes)
    largest = sorted(shapes, key=math.prod)[-NUM_SMALL:]
    return [tuple(min(size, small) for size in shape) for shape in largest]


@dataclass
class UpdateInputs:
    """Arguments of an update, options included, and the table that its kernel keeps."""

    arguments: dict[str, Any]
    options: dict[str, Any]
    table: TensorTable

    @property
    def columns(self) -> dict[str, tuple[Tensor, ...]]:
        return {
            name: value for name, value in self.arguments.items() if isinstance(value, tuple) and name not in SCALARS
        }

    @property
    def device(self) -> torch.device:
        return next(iter(self.columns.values()))[0].device

    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in next(iter(self.columns.values())))


def update_case(
    update: Update[Any],
    variant: str,
    shapes: Shapes,
    *,
    options: Mapping[str, Any],
    given: Mapping[str, float],
    absent: Sequence[str] = (),
    read_again: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    table: Callable[[], TensorTable] = lambda: TensorTable(persistent=True),
    peers: Mapping[str, Callable[[UpdateInputs], Callable[[], Any]]] | None = None,
    goal: str = "",
) -> Case:
    """A case of an update: columns are drawn by the names of the reference's arguments.

    Args:
        given: values of 0-d tensors.
        absent: lists that are empty.
        read_again: columns that the algorithm must read twice, since a norm over all of a tensor comes in between.
        dtype: of parameters and gradients; state is float32.
    """

    def make(device: torch.device, small: int) -> UpdateInputs:
        torch.manual_seed(0)
        arguments: dict[str, Any] = {}
        for place, (name, parameter) in enumerate(inspect.signature(update.reference).parameters.items()):
            if parameter.kind is parameter.KEYWORD_ONLY:
                break
            chosen = shrunk(shapes, small=small)
            if name in given:
                arguments[name] = torch.full((), given[name], device=device)
            elif name in absent:
                arguments[name] = ()
            elif name in SCALARS:
                arguments[name] = (torch.full((), 10.0 if name == "steps" else 0.1, device=device),) * len(chosen)
            elif "Sequence" in str(parameter.annotation):
                column = (draw(shape, device, dtype if place < 2 else torch.float32) for shape in chosen)
                arguments[name] = tuple(x.square_() if name.endswith(("_sqs", "variances")) else x for x in column)
        return UpdateInputs(arguments, dict(options), table())

    package = update.reference.__module__.rpartition(".")[0]
    mutated = {argument.name for argument in update.operator._schema.arguments if argument.alias_info is not None}

    def fused(inputs: UpdateInputs) -> None:
        function = getattr(import_module(f"{package}.fused"), update.name)
        function(**inputs.arguments, **inputs.options, table=inputs.table)

    def least_bytes(inputs: UpdateInputs) -> int:
        size = {name: num_bytes(*column) for name, column in inputs.columns.items()}
        return sum(size.values()) + sum(size.get(name, 0) for name in (*mutated, *read_again))

    return Case(
        name=f"{package.rpartition('.')[2]}/{variant}",
        make=make,
        fused=fused,
        peers=peers or {},
        bytes=least_bytes,
        parameters=UpdateInputs.parameters,
        goal=goal,
    )


def foreach_peer(function: Callable[..., None]) -> Callable[[UpdateInputs], Callable[[], Any]]:
    def peer(inputs: UpdateInputs) -> Callable[[], Any]:
        arguments = {name: list(x) if isinstance(x, tuple) else x for name, x in inputs.arguments.items()}
        return lambda: function(*arguments.values(), **inputs.options)

    return peer


def compiled_peer(update: Update[Any]) -> Callable[[UpdateInputs], Callable[[], Any]]:
    def peer(inputs: UpdateInputs) -> Callable[[], Any]:
        function = compiled(update.reference, inputs.device)
        arguments = {name: list(x) if isinstance(x, tuple) else x for name, x in inputs.arguments.items()}
        return lambda: function(**arguments, **inputs.options)

    return peer


def optimizer_peer(make: Callable[..., torch.optim.Optimizer]) -> Callable[[UpdateInputs], Callable[[], Any]]:
    """An optimizer of PyTorch over parameters that have their gradients already."""

    def peer(inputs: UpdateInputs) -> Callable[[], Any]:
        params, grads = list(inputs.columns.values())[:2]
        leaves = [torch.nn.Parameter(param) for param in params]
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        return make(leaves).step

    return peer
