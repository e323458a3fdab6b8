"""The dictionary `optimizer_state` of an existing submission as what a checkpoint may hold, and back.

What has `state_dict` and `load_state_dict` is stored by them, wherever it stands in nested containers. Numbers, tensors,
named tuples and the like are stored as they are. A function or class is not stored: the newly built state has it, too.
"""

from __future__ import annotations

from collections import deque
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from algoperf_torch.errors import CheckpointError

_STATEFUL, _CODE, _HOST, _ON_HOST = "__state_dict__", "__code__", "__host_tensor__", "__on_host__"
_CODE_TYPES = (FunctionType, BuiltinFunctionType, MethodType, type)


def pack(value: Any, device: torch.device) -> Any:
    """The state as tensors and containers; a tensor in host memory is marked where the trial is on another device."""
    if isinstance(value, Tensor):
        return {_HOST: value} if value.device.type != device.type else value
    if isinstance(value, _CODE_TYPES):
        return {_CODE: value.__qualname__}
    if all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict")):
        stored = value.state_dict()
        return {_STATEFUL: stored, _ON_HOST: _host_state(stored, device)} if _is_plain(value) else {_STATEFUL: stored}
    if isinstance(value, dict):
        return {key: pack(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(pack(item, device) for item in value))
    if type(value) in (tuple, list):
        return type(value)(pack(item, device) for item in value)
    if isinstance(value, deque):
        return deque((pack(item, device) for item in value), maxlen=value.maxlen)
    return value


def unpack(packed: Any, fresh: Any, device: torch.device, where: str = "optimizer_state") -> Any:
    """The inverse; `fresh` is the same state newly built, whose objects with a `state_dict` are loaded and kept.

    Raises `CheckpointError` where the newly built state has no such object.
    """
    if isinstance(packed, Tensor):
        return packed.to(device)
    if isinstance(packed, dict):
        if set(packed) == {_HOST}:
            return packed[_HOST]
        if set(packed) <= {_STATEFUL, _CODE, _ON_HOST} and packed:
            if fresh is None:
                raise CheckpointError(f"Cannot restore {where}: init_optimizer_state does not make it.")
            if _STATEFUL in packed:
                fresh.load_state_dict(packed[_STATEFUL])
            if _ON_HOST in packed:
                _put_back(fresh, packed[_STATEFUL], packed[_ON_HOST])
            return fresh
        known = fresh if isinstance(fresh, dict) else {}
        return {key: unpack(item, known.get(key), device, f"{where}[{key!r}]") for key, item in packed.items()}
    if isinstance(packed, deque):
        return deque(unpack(list(packed), list(fresh or ()), device, where), maxlen=packed.maxlen)
    if isinstance(packed, torch.Size):
        return packed
    if isinstance(packed, tuple | list):
        beside = fresh if isinstance(fresh, tuple | list) and len(fresh) == len(packed) else [None] * len(packed)
        items = [unpack(item, beside[i], device, f"{where}[{i}]") for i, item in enumerate(packed)]
        return type(packed)(*items) if hasattr(packed, "_fields") else type(packed)(items)
    return packed


def _is_plain(value: Any) -> bool:
    """Whether an object is an optimizer that torch loads: it casts state to the dtype and device of the parameters."""
    return isinstance(value, Optimizer) and type(value).load_state_dict is Optimizer.load_state_dict


def _host_state(stored: dict[str, Any], device: torch.device) -> list[tuple[int, str]]:
    """(number of the parameter, name) of state in host memory, where the trial is on another device."""
    return [
        (number, name)
        for number, entries in stored["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor) and value.device.type != device.type
    ]


def _put_back(optimizer: Optimizer, stored: dict[str, Any], on_host: list[tuple[int, str]]) -> None:
    """Gives state its own dtype and place again, so that a resumed trial goes on as it would have."""
    for group, saved in zip(optimizer.param_groups, stored["param_groups"], strict=True):
        for param, number in zip(group["params"], saved["params"], strict=True):
            for name, value in stored["state"].get(number, {}).items():
                if isinstance(value, Tensor) and name != "step":  # torch itself knows where that belongs
                    place = torch.device("cpu") if (number, name) in on_host else param.device
                    optimizer.state[param][name] = value.to(place, copy=True)
