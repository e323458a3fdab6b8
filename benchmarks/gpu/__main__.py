"""Times every kernel against its peers, in turns in one process, and writes one JSON file for each operation.

    python -m benchmarks.gpu --out benchmarks/results/h200 [--only adam lamb] [--rounds 50] [--minutes 9] [--resume]

Where time is short, --minutes begins no operation after so many, names those left out and exits with status 3; --resume goes
on with those that have no file yet.
`make gpu` runs the tests of the kernels on the device first and stops where one fails: a kernel that is wrong has no speed.
`--device cpu --small` runs every case once on tiny inputs, to show that this script works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.case import SMALL, Case

FOLDER = Path(__file__).parent
NO_CASES = ("__main__", "case", "foreach")
CACHE_BYTES = 256 * 2**20  # written before each call, so that no provider finds its inputs in the cache
COPY_BYTES = 2**31


def operations() -> list[str]:
    """Modules of this folder that hold cases."""
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in NO_CASES)


def load_cases(operation: str) -> list[Case]:
    rows: list[Case] = importlib.import_module(f"benchmarks.gpu.{operation}").cases()
    return rows


class Stopwatch:
    """Times calls: on the device by events, after the cache was overwritten; on the host until the call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self.cache = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, function: Callable[[], Any]) -> tuple[float, float]:
        """(milliseconds on the device, microseconds on the host) of one call."""
        if self.device.type != "cuda":
            started = time.perf_counter()
            function()
            seconds = time.perf_counter() - started
            return 1e3 * seconds, 1e6 * seconds
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        self.cache.zero_()  # also keeps the device busy while the host prepares the launch
        first.record()
        started = time.perf_counter()
        function()
        host = time.perf_counter() - started
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last), 1e6 * host


def percentiles(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        return {"p20": values[0], "median": values[0], "p80": values[0]}
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p20": tenths[1], "median": statistics.median(values), "p80": tenths[7]}


def measure(case: Case, stopwatch: Stopwatch, *, rounds: int, small: int, copy_rate: float | None) -> dict[str, Any]:
    """All providers of a case, one call of each in turn; every one has inputs of its own."""
    inputs = case.make(stopwatch.device, small)
    least_bytes, parameters = case.bytes(inputs), case.parameters(inputs)
    providers: dict[str, Callable[[], Any]] = {"fused": lambda: case.fused(inputs)}
    for name, peer in case.peers.items():
        providers[name] = peer(case.make(stopwatch.device, small))
    for function in providers.values():
        for _ in range(3):
            function()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, function in providers.items():
            times[name].append(stopwatch(function))
    rows = {
        name: {
            "device_ms": percentiles([device for device, _ in calls]),
            "host_us": percentiles([host for _, host in calls]),
        }
        for name, calls in times.items()
    }
    ours = rows["fused"]["device_ms"]["median"]
    floor = None if copy_rate is None else 1e3 * least_bytes / copy_rate
    return {
        "case": case.name,
        "goal": case.goal,
        "parameters": parameters,
        "bytes": least_bytes,
        "floor_ms": floor,
        "share_of_copy_rate": None if floor is None else floor / ours,
        "times_faster": {name: row["device_ms"]["median"] / ours for name, row in rows.items() if name != "fused"},
        "providers": rows,
    }


def copy_rate(stopwatch: Stopwatch, rounds: int) -> float:
    """Bytes read and written by a large copy, per second: the median of this run."""
    source = torch.ones(COPY_BYTES // 4, device=stopwatch.device)
    target = torch.empty_like(source)
    times = [stopwatch(lambda: target.copy_(source))[0] for _ in range(rounds)]
    return 2 * COPY_BYTES / (statistics.median(times) / 1e3)


def conditions(device: torch.device, arguments: list[str]) -> dict[str, Any]:
    import triton

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=FOLDER, check=False)
    described = {
        "script": " ".join(["python -m benchmarks.gpu", *arguments]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "device": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
        }
    return described


def _driver() -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--only", nargs="+", choices=operations(), default=operations(), metavar="OPERATION")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no operation after so many")
    parser.add_argument("--resume", action="store_true", help="leave out operations that have their file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny inputs")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device is available. These benchmarks say nothing without one.", file=sys.stderr)
        return 2
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        from algoperf_torch.kernels.interpreter import enable

        enable()
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    files = {operation: options.out / f"{operation}.json" for operation in options.only}
    left = [operation for operation, file in files.items() if not (options.resume and file.exists())]
    stopwatch = Stopwatch(device)
    rate = copy_rate(stopwatch, options.rounds) if device.type == "cuda" else None
    header = conditions(device, arguments) | {"copy_bytes_per_second": rate, "rounds": options.rounds}
    while left and time.monotonic() - started < 60 * options.minutes:
        operation, rows = left.pop(0), []
        for case in load_cases(operation):
            rows.append(
                measure(case, stopwatch, rounds=options.rounds, small=SMALL if options.small else 0, copy_rate=rate)
            )
            print(line(rows[-1]), flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
        files[operation].write_text(json.dumps(header | {"cases": rows}, indent=1) + "\n")
    if left:
        print(f"Not begun after {options.minutes:g} minutes: {', '.join(left)}. Go on with --resume.", file=sys.stderr)
    return 3 if left else 0


def line(row: dict[str, Any]) -> str:
    text = f"{row['case']:<48} {row['providers']['fused']['device_ms']['median']:9.4f} ms"
    if row["share_of_copy_rate"] is not None:
        text += f"  {100 * row['share_of_copy_rate']:5.1f} % of the copy rate"
    return text + "".join(f"  {ratio:6.2f} x {name}" for name, ratio in row["times_faster"].items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
