"""`algoperf run`: the ranks of one trial as processes of this machine, without torchrun's own messages."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any

from algoperf_torch.errors import UsageError
from algoperf_torch.runner.options import RunOptions

GRACE_SECONDS = 30.0  # how long the other ranks may go on after one has failed
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class LocalRunOptions(RunOptions):
    """Trains one trial: one workload, one submission, one hyperparameter point."""

    ranks: int = 1
    """Number of data-parallel processes: one for each GPU, or any number on the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranks < 1:
            raise UsageError(f"--ranks {self.ranks}: must be at least 1.")


def main(options: LocalRunOptions) -> int:
    """Runs the trial here (one rank) or in `options.ranks` child processes; returns the exit status."""
    values = {item.name: getattr(options, item.name) for item in fields(RunOptions)}
    if options.ranks == 1:
        from algoperf_torch.runner.execute import execute

        return execute(RunOptions(**values))
    return launch([sys.executable, "-m", "algoperf_torch.run", *to_arguments(RunOptions(**values))], options.ranks)


def to_arguments(options: RunOptions) -> list[str]:
    """The command line that gives these options."""
    arguments: list[str] = []
    for item in fields(options):
        value: Any = getattr(options, item.name)
        if item.default is not MISSING and value == item.default:
            continue
        flag = f"--{item.name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            arguments += [flag, *map(str, value)]
        else:
            arguments += [flag, str(value.resolve() if isinstance(value, Path) else value)]
    return arguments


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(command: Sequence[str], num_ranks: int) -> int:
    """Starts the command once for each rank, with torchrun's environment variables.

    Requests to stop are handed on. When a rank fails, the others get `GRACE_SECONDS` to end by themselves. Returns the
    exit status of the first rank that failed if a signal ended it (128 + its number), else of rank 0 if that failed.
    """
    shared = {
        "WORLD_SIZE": num_ranks,
        "LOCAL_WORLD_SIZE": num_ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **{k: str(v) for k, v in shared.items()}, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=_die_with_parent,
        )
        for rank in range(num_ranks)
    ]

    def hand_on(signum: int, _frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signum)

    handlers = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(ranks)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    failed_at: float | None = None
    first_failure = 0
    while None in [rank.poll() for rank in ranks]:  # looks at every rank: the first that fails is not always rank 0
        time.sleep(0.05)
        failed = next((rank.returncode for rank in ranks if rank.returncode), 0)
        if failed and failed_at is None:
            failed_at, first_failure = time.monotonic(), failed
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
    status = ranks[0].returncode if first_failure >= 0 and ranks[0].returncode > 0 else first_failure
    status = status or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return 128 - status if status < 0 else status


def _die_with_parent() -> None:
    """In the child: the kernel ends it when the launcher is killed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
