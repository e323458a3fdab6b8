"""Checkpoints: one atomically written file that holds everything a trial needs to go on as if nothing had happened.

State is encoded to tensors and plain containers, so that loading needs no pickled classes (`weights_only=True`). A named
tuple is stored as its values and rebuilt from the freshly initialised state that stands in the same place.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algoperf_torch.errors import CheckpointError

FORMAT = 1
_NAMED_TUPLE = "__named_tuple__"
_ARRAY = "__numpy__"
_DEQUE = "__deque__"
_FILE = re.compile(r"checkpoint_(\d{9})\.pt")


def encode(value: Any, where: str) -> Any:
    """`value` as tensors and plain containers. Raises `CheckpointError` naming the key that cannot be stored."""
    if value is None or (isinstance(value, bool | int | float | str) and type(value) in (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {
            _NAMED_TUPLE: [encode(item, f"{where}.{name}") for name, item in zip(value._fields, value, strict=True)]
        }
    if type(value) in (tuple, list):
        return type(value)(encode(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, deque):
        return {_DEQUE: [value.maxlen, *(encode(item, f"{where}[{i}]") for i, item in enumerate(value))]}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int, tuple, bool):
                raise CheckpointError(
                    f"Cannot save {where}: the key {key!r} is a {type(key).__name__}. Use str or int keys."
                )
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise CheckpointError(
        f"Cannot save {where}: it is a {type(value).__module__}.{type(value).__qualname__}. "
        "A state_dict may hold tensors, numbers, strings, None, and dicts, lists, deques, tuples and named tuples of these."
    )


def decode(value: Any, fresh: Any, where: str) -> Any:
    """The inverse of `encode`; `fresh` is the same state of a newly built object, from which named tuples are rebuilt."""
    if isinstance(value, Mapping):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].numpy()
        if set(value) == {_DEQUE}:
            maxlen, *items = value[_DEQUE]
            return deque(decode(items, list(fresh) if isinstance(fresh, deque) else None, where), maxlen=maxlen)
        if set(value) == {_NAMED_TUPLE}:
            if not (isinstance(fresh, tuple) and hasattr(fresh, "_fields")) or len(fresh) != len(value[_NAMED_TUPLE]):
                raise CheckpointError(
                    f"Cannot restore {where}: the freshly built submission has no such named tuple there."
                )
            return type(fresh)(
                *(
                    decode(item, new, f"{where}.{name}")
                    for name, item, new in zip(fresh._fields, value[_NAMED_TUPLE], fresh, strict=True)
                )
            )
        known = fresh if isinstance(fresh, Mapping) else {}
        kind = OrderedDict if isinstance(fresh, OrderedDict) else dict
        return kind((key, decode(item, known.get(key), f"{where}[{key!r}]")) for key, item in value.items())
    if isinstance(value, tuple | list):
        known_items = fresh if isinstance(fresh, tuple | list) and len(fresh) == len(value) else [None] * len(value)
        return type(value)(
            decode(item, new, f"{where}[{i}]") for i, (item, new) in enumerate(zip(value, known_items, strict=True))
        )
    return value


def random_state(device: torch.device, generators: Mapping[str, torch.Generator]) -> Tensor:
    """All random generators of this rank as one uint8 tensor: torch's default ones and those of the trial."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    parts += [generator.get_state() for generator in generators.values()]
    lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    return torch.cat(
        [torch.tensor([len(parts)], dtype=torch.int64).view(torch.uint8), lengths.view(torch.uint8), *parts]
    )


def restore_random_state(state: Tensor, device: torch.device, generators: Mapping[str, torch.Generator]) -> None:
    """The inverse of `random_state`. Raises `CheckpointError` where the state was taken on another kind of device."""
    count = int(state[:8].clone().view(torch.int64))
    expected = 1 + (device.type == "cuda") + len(generators)
    if count != expected:
        raise CheckpointError(
            f"The checkpoint holds {count} random generators, this run has {expected}; was it made on another device?"
        )
    lengths = state[8 : 8 * (1 + count)].clone().view(torch.int64).tolist()
    parts = list(state[8 * (1 + count) :].split(lengths))
    torch.set_rng_state(parts.pop(0).clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(parts.pop(0).clone(), device)
    for generator, part in zip(generators.values(), parts, strict=True):
        generator.set_state(part.clone())


def save(directory: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Writes `checkpoint_<step>.pt` and then removes older ones. A crash at any moment leaves a complete checkpoint.

    Raises `CheckpointError` for state that cannot be stored and for a full or read-only disk.
    """
    encoded = {"format": FORMAT, **{key: encode(value, key) for key, value in state.items()}}
    path = directory / f"checkpoint_{step:09d}.pt"
    temporary = directory / f".{path.name}.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(encoded, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(directory)
        for old in directory.iterdir():
            match = _FILE.fullmatch(old.name)
            if match and int(match[1]) < step:
                old.unlink()
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"Cannot write checkpoint {path}: {error}. Free the disk or use --no-checkpoint."
        ) from error
    return path


def latest(directory: Path) -> Path | None:
    """The newest complete checkpoint of a trial directory."""
    found = (
        [path for path in directory.glob("checkpoint_*.pt") if _FILE.fullmatch(path.name)] if directory.is_dir() else []
    )
    return max(found, default=None)


def load(path: Path, *, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The encoded state of a checkpoint, in host memory.

    Raises `CheckpointError` for a damaged file, another format, or one whose `identity` (workload, submission, version,
    ...) differs from this trial's.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"Cannot read checkpoint {path}: {_first_line(error)} Delete it to start the trial afresh."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}. Delete it to start the trial afresh.")
    stored = state.get("identity", {})
    for key, value in identity.items():
        if stored.get(key) != value:
            raise CheckpointError(
                f"{path} belongs to another trial: its {key} is {stored.get(key)!r}, this trial's is {value!r}. "
                "Use another --out, or --overwrite to start afresh."
            )
    return state


def remove_all(directory: Path) -> None:
    for path in directory.glob("checkpoint_*.pt"):
        path.unlink()


def sync_directory(directory: Path) -> None:
    """Makes renames and new files in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
