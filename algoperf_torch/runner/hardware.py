"""The machine under a trial: its fingerprint, the check against a benchmark version, telemetry, `algoperf doctor`.

Torch is imported inside the functions, so that `algoperf doctor` works where torch itself is missing.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from algoperf_torch.errors import HardwareMismatchError, UsageError
from algoperf_torch.spec import WorkloadSpec
from algoperf_torch.versions import DEFAULT_VERSION, BenchmarkVersion, Precision, WorkloadTerms, load_version

if TYPE_CHECKING:
    import torch

GIB = 1024**3
MEMORY_TOLERANCE = 0.05  # firmware and drivers keep some of what the data sheet promises

# What numbers or speed depend on: recorded, and compared at every clock stop.
WATCHED_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG",
        "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
        "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "TRITON_INTERPRET",
        "LD_PRELOAD", "PYTHONHASHSEED", "PYTHONOPTIMIZE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
        "THP_MEM_ALLOC_ENABLE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
    }
)  # fmt: skip
WATCHED_PREFIXES = ("OMP_", "MKL_", "KMP_", "GOMP_", "NCCL_", "ALGOPERF_")
UNWATCHED = frozenset({"KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK"})  # libraries set these on import

PACKAGES = (
    "algoperf_torch", "torch", "torchvision", "torchaudio", "torch-geometric", "triton", "numpy", "scipy", "pandas",
    "sentencepiece", "tokenizers", "h5py", "soundfile", "scikit-learn", "nvidia-ml-py", "safetensors", "psutil",
)  # fmt: skip

# ---------------------------------------------------------------- the fingerprint


def fingerprint(device: torch.device) -> dict[str, Any]:
    """Everything about this machine and process that a result may depend on, as plain JSON values. Sizes in bytes."""
    import torch

    gpus = [_gpu(index) for index in range(torch.cuda.device_count())] if device.type == "cuda" else []
    memory = psutil.virtual_memory()
    return {
        "device": device.type,
        "os": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "count": usable_cpus(),
            "installed": os.cpu_count(),
            "physical": psutil.cpu_count(logical=False),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "memory": {"total": memory.total, "available": memory.available, "shm": _disk_free("/dev/shm")},
        "container": container_limits(),
        "gpus": gpus,
        "driver": _driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "python_compiler": platform.python_compiler(),
        "packages": package_versions(),
        "precision": precision_state(),
        "threads": thread_state(),
        "environment": environment(),
        "git": git_state(),
    }


def cpu_model() -> str:
    """The processor's name as the kernel gives it, or the architecture where it gives none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def container_limits(root: Path = Path("/sys/fs/cgroup")) -> dict[str, float | int | None]:
    """Limits of this process's control group: `cpus` (processors' worth of time), `memory` (bytes); None: no limit."""
    limits: dict[str, float | int | None] = {"cpus": None, "memory": None}
    quota = _words(root / "cpu.max") or [
        *_words(root / "cpu/cpu.cfs_quota_us"),
        *_words(root / "cpu/cpu.cfs_period_us"),
    ]
    if len(quota) == 2 and quota[0] not in ("max", "-1"):
        limits["cpus"] = int(quota[0]) / int(quota[1])
    memory = _words(root / "memory.max") or _words(root / "memory/memory.limit_in_bytes")
    if memory and memory[0] != "max" and int(memory[0]) < psutil.virtual_memory().total:
        limits["memory"] = int(memory[0])
    return limits


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _disk_free(path: str | Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
    }


def _driver() -> str | None:
    with _nvml() as nvml:
        return None if nvml is None else str(nvml.nvmlSystemGetDriverVersion())


@contextlib.contextmanager
def _nvml() -> Any:
    """The NVML binding, initialised; None where the package or the driver is absent."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Installed versions by distribution name; None where a package is absent."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def use_huge_pages() -> None:
    """Lets torch ask Linux for huge pages under large host tensors; to be called before the first tensor is made.

    Such memory is fresh at every step, and taking it in pages of 4 KiB costs more than filling it: 0.10 s for 256 MiB
    against 0.02 s. A variable that the user has set stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def environment() -> dict[str, str]:
    """The environment variables that numbers or speed depend on."""
    return {
        key: value
        for key, value in sorted(os.environ.items())
        if (key in WATCHED_VARIABLES or key.startswith(WATCHED_PREFIXES)) and key not in UNWATCHED
    }


def git_state(directory: Path | None = None) -> dict[str, Any] | None:
    """Commit, branch and cleanliness of the checkout that this package runs from; None outside a checkout."""
    root = directory or Path(__file__).parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None

    def ask(*arguments: str) -> str:
        command = [git, "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "branch": ask("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):  # a repository of another owner, or one without commits
        return None


# ---------------------------------------------------------------- precision and threads


def set_precision(precision: Precision) -> None:
    """Sets the numerical flags of a benchmark version; everything else keeps torch's defaults."""
    import torch

    torch.set_float32_matmul_precision(precision.float32_matmul)
    torch.backends.cudnn.benchmark = precision.cudnn_benchmark


def precision_state() -> dict[str, Any]:
    """Every flag that changes what numbers come out. Plain values, compared at each clock stop."""
    import torch

    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    inductor = sys.modules.get("torch._inductor.config")
    return {
        "float32_matmul": _flag(torch.get_float32_matmul_precision),
        "cuda_matmul": _flag(lambda: cuda.matmul.fp32_precision),
        "cuda_fp16_reduction": _flag(lambda: cuda.matmul.allow_fp16_reduced_precision_reduction),
        "cuda_bf16_reduction": _flag(lambda: cuda.matmul.allow_bf16_reduced_precision_reduction),
        "cuda_fp16_accumulation": _flag(lambda: cuda.matmul.allow_fp16_accumulation),
        "cudnn_conv": _flag(lambda: cudnn.conv.fp32_precision),
        "cudnn_rnn": _flag(lambda: cudnn.rnn.fp32_precision),
        "cudnn_enabled": cudnn.enabled,
        "cudnn_benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "mkldnn_enabled": mkldnn.enabled,
        "mkldnn_matmul": _flag(lambda: mkldnn.matmul.fp32_precision),
        "flash_attention": cuda.flash_sdp_enabled(),
        "efficient_attention": cuda.mem_efficient_sdp_enabled(),
        "math_attention": cuda.math_sdp_enabled(),
        "math_attention_reduction": cuda.fp16_bf16_reduction_math_sdp_allowed(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": str(torch.get_default_dtype()),
        "autocast_cpu": torch.is_autocast_enabled("cpu"),
        "autocast_cuda": torch.is_autocast_enabled("cuda"),
        "grad_enabled": torch.is_grad_enabled(),
        "inference_mode": torch.is_inference_mode_enabled(),
        "anomaly_detection": torch.is_anomaly_enabled(),
        "denormals_flushed": bool((torch.tensor(1e-310, dtype=torch.float64) * 1.0 == 0.0).item()),
        "compiler_fast_math": bool(getattr(inductor, "use_fast_math", False)),
    }


def _flag(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError as error:  # torch refuses to read a flag that was set through its old and its new interface
        return f"unreadable: {str(error).splitlines()[0]}"


def thread_state() -> dict[str, Any]:
    """How many processors and threads this process may use."""
    import torch

    return {
        "torch": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "cpus": usable_cpus(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0,
    }


# ---------------------------------------------------------------- comparison with a version


@dataclass(frozen=True)
class Check:
    """One line of the table of expected and found. An official run needs every `required` one."""

    name: str
    expected: str
    found: str
    ok: bool
    required: bool = True


def compare(version: BenchmarkVersion, found: Mapping[str, Any]) -> list[Check]:
    """A benchmark version's machine and flags against a fingerprint. What the version does not name is not listed."""
    hardware, gpus = version.hardware, found["gpus"]
    checks: list[Check] = []

    def check(name: str, expected: object, value: object, ok: bool, *, required: bool = True) -> None:
        checks.append(Check(name, str(expected), "none" if value is None else str(value), ok, required))

    def enough(expected: float, size: float) -> bool:
        return size >= expected * GIB * (1 - MEMORY_TOLERANCE)

    if hardware.device is not None:
        names = sorted({gpu["name"] for gpu in gpus}) or [found["cpu"]["model"]]
        check(
            "device", hardware.device, ", ".join(names), [name.lower() for name in names] == [hardware.device.lower()]
        )
    if hardware.num_devices is not None:
        check("number of devices", hardware.num_devices, len(gpus), len(gpus) == hardware.num_devices)
    if hardware.device_memory_gib is not None:
        smallest = min((gpu["memory"] for gpu in gpus), default=0)
        check(
            "device memory",
            _gib(hardware.device_memory_gib),
            _gib(smallest / GIB),
            enough(hardware.device_memory_gib, smallest),
        )
    if hardware.memory_gib is not None:
        memory = min(found["memory"]["total"], found["container"]["memory"] or float("inf"))
        check("memory", _gib(hardware.memory_gib), _gib(memory / GIB), enough(hardware.memory_gib, memory))
    if hardware.num_cpus is not None:
        cpus = min(found["cpu"]["count"], found["container"]["cpus"] or float("inf"))
        check("processors", hardware.num_cpus, f"{cpus:g}", cpus == hardware.num_cpus)
    if hardware.driver is not None:
        check("driver", hardware.driver, found["driver"], found["driver"] == hardware.driver)
    if hardware.python is not None:
        check("python", hardware.python, found["python"], _same_version(hardware.python, found["python"]))
    if hardware.torch is not None:
        torch_version = found["packages"]["torch"]
        check("torch", hardware.torch, torch_version, _same_version(hardware.torch, torch_version))
    precision, flags = version.precision, found["precision"]
    check(
        "float32 products",
        precision.float32_matmul,
        flags["float32_matmul"],
        flags["float32_matmul"] == precision.float32_matmul,
    )
    check(
        "cudnn benchmark",
        precision.cudnn_benchmark,
        flags["cudnn_benchmark"],
        flags["cudnn_benchmark"] == precision.cudnn_benchmark,
    )
    overrides = [f"{key}={found['environment'][key]}" for key in _OVERRIDES if key in found["environment"]]
    check("overriding variables", "none", ", ".join(overrides) or "none", not overrides)
    return checks


_OVERRIDES = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUDA_LAUNCH_BLOCKING", "TORCH_COMPILE_DISABLE",
    "TORCHDYNAMO_DISABLE", "TRITON_INTERPRET", "LD_PRELOAD",
)  # fmt: skip


def _gib(size: float) -> str:
    return f"{size:.1f} GiB".replace(".0 ", " ")


def _same_version(expected: str, found: str | None) -> bool:
    """Whether `found` starts with all dotted parts of `expected`: 2.11 accepts 2.11.0+cu130, not 2.1."""
    if found is None:
        return False
    parts = expected.split("+")[0].split(".")
    same = found.split("+")[0].split(".")[: len(parts)] == parts
    return same and ("+" not in expected or found == expected)


def check_table(checks: Sequence[Check]) -> str:
    """The checks as lines of text: name, expected, found, verdict."""
    rows = [("", "expected", "found", "")]
    rows += [(c.name, c.expected, c.found, "ok" if c.ok else "MISMATCH" if c.required else "differs") for c in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def require(version: BenchmarkVersion, checks: Sequence[Check]) -> None:
    """Raises `HardwareMismatchError` with the table where an official version names another machine than this one."""
    failed = [check for check in checks if check.required and not check.ok]
    if version.official and failed:
        names = ", ".join(check.name for check in failed)
        raise HardwareMismatchError(
            f"Version {version.name} is official and this machine differs from its own in: {names}. "
            f"Use that machine, or --version {DEFAULT_VERSION}.\n{check_table(checks)}"
        )


# ---------------------------------------------------------------- meta data in the official layout


def meta_data(
    found: Mapping[str, Any], *, spec: WorkloadSpec, terms: WorkloadTerms, seed: int
) -> dict[str, str | int | float | bool]:
    """The flat content of `meta_data_<k>.json`, with the official keys. `found` is a fingerprint."""
    memory, frequency = psutil.virtual_memory(), psutil.cpu_freq()
    disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
    meta: dict[str, Any] = {
        "workload.eval_batch_size": terms.eval_batch_size or spec.eval_batch_size,
        "workload.eval_period_time_sec": terms.eval_period_seconds,
        "workload.max_allowed_runtime_sec": terms.budget_seconds,
        "workload.num_eval_train_examples": spec.num_eval_train,
        "workload.num_test_examples": spec.num_test,
        "workload.num_train_examples": spec.num_train,
        "workload.num_validation_examples": spec.num_validation,
        "workload.step_hint": terms.step_hint,
        "workload.target_metric_name": terms.metric,
        "workload.test_target_value": terms.test_target,
        "workload.validation_target_value": terms.validation_target,
        "cpu.util.avg_percent_since_last": psutil.cpu_percent(),
        "cpu.freq.current": frequency.current if frequency else None,
        "mem.total": memory.total,
        "mem.available": memory.available,
        "mem.used": memory.used,
        "mem.percent_used": memory.percent,
        "mem.read_bytes_since_boot": disk.read_bytes if disk else None,
        "mem.write_bytes_since_boot": disk.write_bytes if disk else None,
        "net.bytes_sent_since_boot": net.bytes_sent if net else None,
        "net.bytes_recv_since_boot": net.bytes_recv if net else None,
        "gpu.count": len(found["gpus"]),
        **_gpu_utilisation(len(found["gpus"])),
        "os_platform": found["os"],
        "python_version": found["python"],
        "python_compiler": found["python_compiler"],
        "git_branch": found["git"]["branch"] if found["git"] else None,
        "git_commit_hash": found["git"]["commit"] if found["git"] else None,
        "cpu_model_name": found["cpu"]["model"],
        "cpu_count": found["cpu"]["count"],
        "gpu_model_name": found["gpus"][0]["name"] if found["gpus"] else None,
        "gpu_count": len(found["gpus"]),
        "gpu_driver": found["driver"],
        "rng_seed": seed,
    }
    return {key: value for key, value in meta.items() if value is not None}


def _gpu_utilisation(count: int) -> dict[str, float]:
    """`gpu.<i>.*` and `gpu.avg.*`: utilisation as fractions, memory in MiB, temperature in degrees Celsius."""
    rows: list[dict[str, float]] = []
    with _nvml() as nvml:
        for index in range(count if nvml else 0):
            handle = _nvml_handle(nvml, index)
            memory, use = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUtilizationRates(handle)
            rows.append(
                {
                    "compute.util": use.gpu / 100,
                    "mem.util": memory.used / memory.total,
                    "mem.total": memory.total / 2**20,
                    "mem.used": memory.used / 2**20,
                    "mem.free": memory.free / 2**20,
                    "temp.current": float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                }
            )
    values = {f"gpu.{index}.{key}": value for index, row in enumerate(rows) for key, value in row.items()}
    if rows:
        values |= {f"gpu.avg.{key}": statistics.fmean(row[key] for row in rows) for key in rows[0]}
    return values


def _nvml_handle(nvml: Any, index: int) -> Any:
    """NVML's handle of the device that torch calls `index`: NVML does not heed CUDA_VISIBLE_DEVICES, the UUID does."""
    import torch

    uuid = str(torch.cuda.get_device_properties(index).uuid)
    return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


# ---------------------------------------------------------------- telemetry


class Telemetry:
    """Clocks, temperature, power and throttle reasons, read where `sample` is called: no thread of its own.

    Readings that this machine does not give are left out; nothing fails for their absence.
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._open(device.index or 0)

    def _open(self, index: int) -> None:
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._handle = _nvml_handle(pynvml, index)
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def sample(self) -> dict[str, Any]:
        """Readings of this moment: MHz, degrees Celsius, watts, fractions."""
        reading: dict[str, Any] = {"cpu_load": round(os.getloadavg()[0], 2)}
        frequency = psutil.cpu_freq()
        if frequency:
            reading["cpu_mhz"] = round(frequency.current)
        sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
        temperatures = [entry.current for entries in sensors.values() for entry in entries if entry.current]
        if temperatures:
            reading["cpu_temperature"] = max(temperatures)
        if self._nvml is not None:
            reading |= self._gpu()
        return reading

    def _gpu(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle
        readers: dict[str, Callable[[], Any]] = {
            "gpu_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "gpu_temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "gpu_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "gpu_memory_used": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "gpu_other_processes": lambda: sum(
                process.pid != os.getpid() for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ),
            "throttle_reasons": self._throttle_reasons,
        }
        reading: dict[str, Any] = {}
        for name, read in readers.items():
            with contextlib.suppress(nvml.NVMLError):  # a reading that this device or container does not give
                reading[name] = read()
        return reading

    def _throttle_reasons(self) -> list[str]:
        bits = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        return [name for bit, name in THROTTLE_REASONS.items() if bits & bit]

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None


# Bits of NVML's clocks event reasons that slow a run down. Idle and user-set clocks are no throttling.
THROTTLE_REASONS = {
    0x04: "software power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
SEVERE_THROTTLING = frozenset(THROTTLE_REASONS.values()) - {"software power cap"}


def calibrate(device: torch.device, repeats: int = 9) -> float:
    """Median seconds of a fixed piece of arithmetic and memory traffic: the machine's speed at this moment.

    A chain of float32 matrix products and a pass over an array too large for the caches; no random numbers.
    """
    import torch

    size, length = (4096, 2**26) if device.type == "cuda" else (384, 2**21)
    with torch.no_grad():
        matrix = torch.full((size, size), 1.0 / size, device=device)
        array = torch.ones(length, device=device)
        seconds = []
        for _ in range(repeats + 2):
            _synchronize(device)
            started = time.perf_counter()
            product = matrix
            for _ in range(4):
                product = product @ matrix
            array.mul_(1.0)
            _synchronize(device)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])  # the first two warm caches and libraries up


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def disk_read_bytes() -> int | None:
    """Bytes fetched from disk for this process so far, mapped files included; None where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines():
            if line.startswith("read_bytes:"):
                return int(line.split()[1])
    return None


# ---------------------------------------------------------------- preflight


def preflight(out_dir: Path, needed_bytes: int = 0, *, memory_bytes: int = 0) -> None:
    """Makes sure that a run can write `needed_bytes` below `out_dir` and has `memory_bytes` of host memory.

    Nothing is created. Raises `UsageError` for a place that cannot be written, a full disk, too little memory.
    """
    place = out_dir.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"Cannot write to {out_dir}: {place} is not a directory. Choose another --out.")
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(f"The disk of {place} is full. Free space, or choose another --out.") from error
        raise UsageError(f"Cannot write to {place}: {error.strerror or error}. Choose another --out.") from error
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise UsageError(
            f"The run needs {_size(needed_bytes)} below {place}, and {_size(free)} are free. "
            "Free space, or choose another --out."
        )
    available = psutil.virtual_memory().available
    limit = container_limits()["memory"]
    if limit is not None:
        available = min(available, int(limit))
    if available < memory_bytes:
        raise UsageError(f"The run needs {_size(memory_bytes)} of memory, and {_size(available)} are available.")


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


# ---------------------------------------------------------------- algoperf doctor


@dataclass(frozen=True)
class DoctorOptions:
    """Shows what this machine has, what a benchmark version expects, and what is missing."""

    version: str = DEFAULT_VERSION
    """Benchmark version whose machine is expected: v0.5, v0.6, v1.0, mini, local, or the path of a TOML file."""
    out: Path = Path("runs")
    """Directory that runs would be written to."""


def main(options: DoctorOptions) -> int:
    """Prints the tables. 0 where a run can start, 1 where something that every run needs is missing."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    version = load_version(options.version)
    needs = requirements(options.out)
    console.print("This machine\n" + check_table(needs))
    failed = [check for check in needs if check.required and not check.ok]
    if importlib.util.find_spec("torch") is not None:
        import torch

        set_precision(version.precision)
        found = fingerprint(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        checks = compare(version, found)
        kind = "official" if version.official else "not official: any machine will do"
        console.print(f"\nVersion {version.name} ({kind})\n" + check_table(checks))
        if version.official:
            failed += [check for check in checks if check.required and not check.ok]
    if failed:
        console.print(f"\nNot ready: {', '.join(check.name for check in failed)}.")
        return 1
    console.print("\nReady.")
    return 0


def requirements(out: Path) -> list[Check]:
    """What every run needs on this machine (required), and what some need."""
    checks = [_minimum("python", "3.11", platform.python_version(), sys.version_info >= (3, 11))]
    versions = package_versions()
    checks += [Check(name, "installed", found or "missing", found is not None) for name, found in versions.items()]
    compiler = next(
        (path for name in ("g++", "clang++", "c++") if (path := shutil.which(os.environ.get("CXX", name)))), None
    )
    checks.append(Check("C++ compiler", "g++ or clang++", compiler or "missing: apt install g++", compiler is not None))
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = str(header) if header.exists() else "missing: apt install python3-dev"
    checks.append(Check("Python.h", "for Triton and torch.compile", found, header.exists()))
    memory, free, shm = psutil.virtual_memory().total, _free_below(out), _disk_free("/dev/shm")
    checks.append(_minimum("memory", "4 GiB", _gib(memory / GIB), memory >= 4 * GIB * (1 - MEMORY_TOLERANCE)))
    checks.append(_minimum("free disk", "1 GiB", "unknown" if free is None else _gib(free / GIB), (free or 0) >= GIB))
    enough = (shm or 0) >= GIB
    checks.append(
        Check("/dev/shm", "at least 1 GiB", "none" if shm is None else _gib(shm / GIB), enough, required=False)
    )
    try:
        preflight(out)
        checks.append(Check("output directory", "writable", str(out), ok=True))
    except UsageError as error:
        checks.append(Check("output directory", "writable", str(error), ok=False))
    gpus = _gpu_names()
    checks.append(Check("GPU", "for full-size workloads", ", ".join(gpus) or "none", bool(gpus), required=False))
    return checks


def _minimum(name: str, expected: str, found: str, ok: bool) -> Check:
    return Check(name, f"at least {expected}", found, ok)


def _free_below(path: Path) -> int | None:
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return _disk_free(place)


def _gpu_names() -> list[str]:
    with _nvml() as nvml:
        if nvml is None:
            return []
        return [
            str(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(i))) for i in range(nvml.nvmlDeviceGetCount())
        ]
