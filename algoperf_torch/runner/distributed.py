"""The ranks of one trial: process groups, devices, and what they must agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from algoperf_torch.errors import UsageError

CONTROL_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among the data-parallel ranks. `control` is a gloo group of the harness's own, None with one rank."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def maximum(self, *values: float) -> list[float]:
        """The largest of each value over the ranks, equal on all of them."""
        if self.control is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return [float(value) for value in tensor.tolist()]

    def sum_rows(self, rows: Tensor) -> Tensor:
        """The sum over ranks of host tensors of one shape; exact where at most one rank holds a nonzero entry."""
        if self.control is not None:
            dist.all_reduce(rows, group=self.control)
        return rows

    def gather_bytes(self, value: Tensor) -> list[Tensor]:
        """The uint8 tensors of all ranks, of any lengths, in rank order, on every rank."""
        if self.control is None:
            return [value]
        sizes = [torch.zeros((), dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor(value.numel()), group=self.control)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: value.numel()] = value
        gathered = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world_size)]
        dist.all_gather(gathered, padded, group=self.control)
        return [item[: int(size)].clone() for item, size in zip(gathered, sizes, strict=True)]

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        own = (
            torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
        )
        return bytes(self.gather_bytes(own)[0].tolist()).decode()

    def barrier(self) -> None:
        if self.control is not None:
            dist.barrier(group=self.control)

    @torch.no_grad()
    def average_(self, tensors: list[Tensor]) -> None:
        """Averages floating-point tensors over the ranks, in place, in one message."""
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def synchronize(self) -> None:
        """Waits for all work on the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            f"Environment variable {name}={text!r} is not a number. Start with torchrun, or unset it."
        ) from None


def join(device: Literal["auto", "cpu", "cuda"]) -> Ranks:
    """Joins the process group that torchrun describes in the environment; alone without torchrun.

    Raises `UsageError` for an environment that is inconsistent, a device that is absent, or a port that is taken.
    """
    world_size = _environment_number("WORLD_SIZE", 1)
    rank = _environment_number("RANK", 0)
    local_rank = _environment_number("LOCAL_RANK", rank)
    if not 0 <= rank < world_size:
        raise UsageError(f"RANK={rank} does not fit WORLD_SIZE={world_size}. Start with torchrun, which sets both.")
    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if use_cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda, but no CUDA device is visible. Use --device cpu, or see `algoperf doctor`.")
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"Rank {rank} wants GPU {local_rank}, but only {torch.cuda.device_count()} are visible. "
            f"Use --nproc_per_node={torch.cuda.device_count()}."
        )
    place = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if world_size == 1:
        return Ranks(0, 1, local_rank, place, None)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(f"WORLD_SIZE={world_size}, but {missing[0]} is not set. Start with torchrun, which sets it.")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=CONTROL_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UsageError(
            f"The ranks could not meet at {where} ({str(error).splitlines()[0]}). Is the port in use, or a rank missing? "
            "Use torchrun --standalone, which picks a free port."
        ) from error
    return Ranks(rank, world_size, local_rank, place, control)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
