"""Which implementation of an operation runs, and which did: the reference or the kernel.

On a CUDA device an update of parameters runs its kernel; a data or model path does so once a measurement on a GPU has
shown that it wins (`MEASURED`). `choose` overrules both. On the CPU the reference is the kernel.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Generic, Literal, ParamSpec

import torch
from torch import Tensor

from algoperf_torch.errors import UnknownNameError

Choice = Literal["default", "fused", "reference"]
P = ParamSpec("P")

NAMESPACE = "algoperf"
DEVICES: frozenset[str] = frozenset({"cuda"})  # types of devices that kernels run on
MEASURED: frozenset[str] = frozenset()  # data and model paths whose kernel is faster: see docs/kernels.md

_choice: Choice = "default"
_used: set[str] = set()


def load() -> None:
    """Registers every operation with torch, which else happens when it is first imported."""
    import algoperf_torch.kernels as package

    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            import_module(f"{package.__name__}.{module.name}")


def choose(choice: Choice) -> None:
    """Sets what runs on CUDA devices from now on, in this process, and forgets what ran. Raises `UnknownNameError`."""
    global _choice  # operators are reached through torch's dispatcher, which carries no state of ours
    if choice not in ("default", "fused", "reference"):
        raise UnknownNameError("choice of kernels", choice, ("default", "fused", "reference"))
    _choice = choice
    _used.clear()


def used() -> tuple[str, ...]:
    """Names of the operations whose kernel ran in this process since the last choice, sorted."""
    return tuple(sorted(_used))


def updates_fused(device: torch.device) -> bool:
    """Whether parameters on this device are to be updated by kernels."""
    return device.type in DEVICES and _choice != "reference"


def takes_path(name: str, device: torch.device) -> bool:
    """Whether a workload is to take a data or model path through its operation; else it keeps to plain PyTorch.

    An operation is opaque to the compiler: with its reference inside, it would only keep that from being fused.
    """
    return updates_fused(device) and (_choice == "fused" or name in MEASURED)


def runs_fused(name: str, device: torch.device, *, update: bool = False) -> bool:
    """Whether the kernel of an operation is to run on this device; notes that it does."""
    if not (updates_fused(device) if update else takes_path(name, device)):
        return False
    _used.add(name)
    return True


class Update(Generic[P]):
    """An in-place update of many tensors: registered with `torch.library`, and called without it in eager code.

    A custom operator over 1,600 tensors would cost 1.9 ms of host time a call. The first argument of the reference is the
    list of parameters; the kernel has the same name and arguments, and `table`, in the module `fused` beside it.
    """

    def __init__(self, reference: Callable[P, None], *, mutates: Sequence[str]) -> None:
        self.name = reference.__name__
        self.reference = reference
        self._params = next(iter(inspect.signature(reference).parameters))
        self._fused = reference.__module__.rpartition(".")[0] + ".fused"
        schema = torch.library.infer_schema(reference, mutates_args=mutates)
        torch.library.custom_op(f"{NAMESPACE}::{self.name}", self._run, mutates_args=mutates, schema=schema)
        self.operator = getattr(getattr(torch.ops, NAMESPACE), self.name).default

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        if torch.compiler.is_compiling():
            self.operator(*args, **kwargs)
        else:
            self._run(*args, **kwargs)

    def with_table(self, table: object, *args: P.args, **kwargs: P.kwargs) -> None:
        """The same for eager callers that keep a `launch.TensorTable` between updates."""
        self._run(*args, **kwargs, table=table)

    def _run(self, *args: Any, table: object = None, **kwargs: Any) -> None:
        params: Sequence[Tensor] = args[0] if args else kwargs[self._params]
        if params and runs_fused(self.name, params[0].device, update=True):
            getattr(import_module(self._fused), self.name)(*args, **kwargs, table=table)
        else:
            self.reference(*args, **kwargs)
