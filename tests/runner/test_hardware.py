"""Fingerprint, the table of expected and found, telemetry, preflight, `algoperf doctor`."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from algoperf_torch.errors import HardwareMismatchError, UnknownNameError, UsageError
from algoperf_torch.runner import hardware
from algoperf_torch.runner.hardware import Check, DoctorOptions, Telemetry, check_table, compare, require
from algoperf_torch.spec import LossKind, WorkloadSpec
from algoperf_torch.versions import Precision, load_version

CPU = torch.device("cpu")
GIB = 1024**3


@pytest.fixture(autouse=True)
def flags_are_put_back():
    matmul, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(scope="module")
def found():
    return hardware.fingerprint(CPU)


@pytest.fixture
def official():
    """Version v0.6 and the fingerprint of exactly its machine."""
    version = load_version("v0.6")
    machine = version.hardware
    fingerprint = {
        "cpu": {"model": "Intel(R) Xeon(R) CPU @ 2.00GHz", "count": machine.num_cpus},
        "memory": {"total": machine.memory_gib * GIB},
        "container": {"cpus": None, "memory": None},
        "gpus": [{"name": machine.device, "memory": machine.device_memory_gib * GIB}] * machine.num_devices,
        "driver": machine.driver,
        "python": machine.python,
        "packages": {"torch": "2.11.0+cu128"},
        "precision": {
            "float32_matmul": version.precision.float32_matmul,
            "cudnn_benchmark": version.precision.cudnn_benchmark,
        },
        "environment": {},
    }
    return version, fingerprint


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_is_json_and_complete(found):
    again = json.loads(json.dumps(found))
    assert again == found
    assert found["cpu"]["count"] == len(os.sched_getaffinity(0))
    assert found["memory"]["total"] == psutil.virtual_memory().total
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["python"].startswith("3.")
    assert found["gpus"] == []
    assert found["driver"] is None


def test_fingerprint_holds_only_variables_that_matter(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("SOME_SECRET_TOKEN", "hidden")
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")
    variables = hardware.environment()
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["NVIDIA_TF32_OVERRIDE"] == "0"
    assert "SOME_SECRET_TOKEN" not in variables
    assert "KMP_INIT_AT_FORK" not in variables


FAULTS = """
import resource, sys
import torch
from algoperf_torch.runner import hardware

if sys.argv[1] == "huge":
    hardware.use_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_take_few_page_faults():
    choice = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not choice.is_file() or "[madvise]" not in choice.read_text():
        pytest.skip("this system does not leave huge pages to its programs")
    environment = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}

    def faults(kind: str) -> int:
        command = [sys.executable, "-c", FAULTS, kind]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("huge") < faults("small") / 4


def test_fingerprint_does_not_change_from_one_call_to_the_next():
    changing = {"memory", "git", "precision"}
    first, second = (hardware.fingerprint(CPU) for _ in range(2))
    assert {k: v for k, v in second.items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000", "memory.max": str(GIB)}, {"cpus": 1.5, "memory": GIB}),
        ({"cpu.max": "max 100000", "memory.max": "max"}, {"cpus": None, "memory": None}),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(2 * GIB),
            },
            {"cpus": 2.0, "memory": 2 * GIB},
        ),
        (
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(2**63 - 4096),
            },
            {"cpus": None, "memory": None},
        ),
        ({}, {"cpus": None, "memory": None}),
    ],
    ids=["v2", "v2 without limits", "v1", "v1 without limits", "none"],
)
def test_container_limits(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert hardware.container_limits(tmp_path) == expected


def test_git_state_of_a_checkout_and_of_none(tmp_path):
    assert hardware.git_state(tmp_path) is None
    (tmp_path / ".git").mkdir()  # a folder of that name that is no repository
    assert hardware.git_state(tmp_path) is None
    state = hardware.git_state()
    assert state is None or len(state["commit"]) == 40


def test_meta_data_has_the_official_keys(found):
    spec = WorkloadSpec(
        name="digits",
        base="digits",
        dataset="digits",
        loss=LossKind.SOFTMAX_CROSS_ENTROPY,
        metric="accuracy",
        num_train=100,
        num_eval_train=20,
        num_validation=20,
        num_test=10,
        batch_size=8,
        eval_batch_size=16,
        metrics=("accuracy", "loss"),
    )
    terms = load_version("local").terms("digits")
    meta = hardware.meta_data(found, spec=spec, terms=terms, seed=-7)
    assert json.loads(json.dumps(meta)) == meta
    assert all(isinstance(value, str | int | float | bool) for value in meta.values())
    expected = {
        "workload.eval_batch_size": 16,
        "workload.max_allowed_runtime_sec": terms.budget_seconds,
        "workload.num_test_examples": 10,
        "workload.target_metric_name": "accuracy",
        "workload.validation_target_value": terms.validation_target,
        "gpu.count": 0,
        "gpu_count": 0,
        "cpu_count": found["cpu"]["count"],
        "cpu_model_name": found["cpu"]["model"],
        "python_version": found["python"],
        "rng_seed": -7,
    }
    assert {key: meta[key] for key in expected} == expected
    assert {"mem.total", "mem.available", "mem.used", "mem.percent_used", "os_platform", "python_compiler"} <= set(meta)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_precision_is_set_and_read_back(matmul):
    hardware.set_precision(Precision(float32_matmul=matmul, cudnn_benchmark=False))
    state = hardware.precision_state()
    assert state["float32_matmul"] == matmul
    assert state["cudnn_benchmark"] is False
    hardware.set_precision(Precision(float32_matmul=matmul, cudnn_benchmark=True))
    assert hardware.precision_state()["cudnn_benchmark"] is True


CHANGES = {
    "float32_matmul": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn_conv": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "cudnn_deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "cuda_bf16_reduction": lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    "flash_attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "default_dtype": lambda: torch.set_default_dtype(torch.float64),
    "grad_enabled": lambda: torch.set_grad_enabled(False),
    "autocast_cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "deterministic": lambda: torch._C._set_deterministic_algorithms(True, warn_only=False),
    "denormals_flushed": lambda: torch.set_flush_denormal(True),
}


@pytest.mark.parametrize("flag", CHANGES)
def test_precision_state_sees(flag):
    before = hardware.precision_state()
    conv = torch.backends.cudnn.conv.fp32_precision
    try:
        CHANGES[flag]()
        after = hardware.precision_state()
    finally:
        torch.backends.cudnn.conv.fp32_precision = conv
        torch.backends.cudnn.deterministic = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        torch.backends.cuda.enable_flash_sdp(True)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)
        torch._C._set_deterministic_algorithms(False, warn_only=False)
        torch.set_flush_denormal(False)
    assert flag in {key for key in before if before[key] != after[key]}


# ---------------------------------------------------------------- comparison


def test_the_named_machine_passes(official):
    version, machine = official
    checks = compare(version, machine)
    assert all(check.ok for check in checks), check_table(checks)
    require(version, checks)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("device", lambda f: f | {"gpus": [f["gpus"][0] | {"name": "NVIDIA A100-SXM4-40GB"}] * 8}),
        ("device", lambda f: f | {"gpus": [*f["gpus"][:7], f["gpus"][0] | {"name": "Tesla P100"}]}),
        ("number of devices", lambda f: f | {"gpus": f["gpus"][:4]}),
        ("device memory", lambda f: f | {"gpus": [*f["gpus"][:7], f["gpus"][0] | {"memory": 12 * GIB}]}),
        ("memory", lambda f: f | {"memory": {"total": 100 * GIB}}),
        ("memory", lambda f: f | {"container": {"cpus": None, "memory": 64 * GIB}}),
        ("processors", lambda f: f | {"cpu": f["cpu"] | {"count": 16}}),
        ("processors", lambda f: f | {"container": {"cpus": 8.0, "memory": None}}),
        ("driver", lambda f: f | {"driver": "535.104.05"}),
        ("python", lambda f: f | {"python": "3.12.1"}),
        ("float32 products", lambda f: f | {"precision": f["precision"] | {"float32_matmul": "medium"}}),
        ("overriding variables", lambda f: f | {"environment": {"NVIDIA_TF32_OVERRIDE": "1"}}),
    ],
)
def test_a_difference_is_refused_with_the_table(official, name, change):
    version, machine = official
    checks = compare(version, change(machine))
    assert [check.name for check in checks if not check.ok] == [name]
    with pytest.raises(HardwareMismatchError, match=f"differs from its own in: {name}") as caught:
        require(version, checks)
    assert "expected" in str(caught.value)
    assert "MISMATCH" in str(caught.value)
    assert caught.value.exit_code == 2


def test_firmware_may_keep_a_little_memory(official):
    version, machine = official
    assert all(check.ok for check in compare(version, machine | {"memory": {"total": int(0.96 * 240 * GIB)}}))


def test_local_accepts_any_machine(found):
    version = load_version("local")
    require(version, compare(version, found | {"precision": {"float32_matmul": "highest", "cudnn_benchmark": False}}))


def test_cpu_device_is_compared_by_its_model(official):
    version, machine = official
    version = replace(version, hardware=replace(version.hardware, device="AMD EPYC"))
    checks = compare(version, machine | {"gpus": [], "cpu": {"model": "amd epyc", "count": 32}})
    assert next(check for check in checks if check.name == "device").ok


@pytest.mark.parametrize(
    ("expected", "version", "same"),
    [
        ("2.11", "2.11.0+cu130", True),
        ("2.11", "2.1.0", False),
        ("2.11.0", "2.11.1", False),
        ("2.11.0+cu128", "2.11.0+cu130", False),
        ("3.11.10", "3.11.1", False),
        ("2.11", None, False),
    ],
)
def test_versions_are_compared_by_their_parts(expected, version, same):
    assert hardware._same_version(expected, version) is same


def test_table_is_aligned():
    lines = check_table(
        [Check("device", "V100", "none", ok=False), Check("GPU", "any", "none", ok=False, required=False)]
    ).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["device", "V100", "none", "MISMATCH"]
    assert lines[2].split() == ["GPU", "any", "none", "differs"]
    assert len({line.index(word) for line, word in zip(lines, ("expected", "V100", "any"), strict=True)}) == 1


# ---------------------------------------------------------------- telemetry


class FakeNvml:
    """An NVML binding with one throttling device that does not tell its power."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = range(3)
    shut_down = False

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1410 - kind

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 84

    def nvmlDeviceGetPowerUsage(self, handle):
        raise self.NVMLError("not supported")

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=123)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return 0x01 | 0x04 | 0x40  # idle, software power cap, hardware thermal slowdown

    def nvmlShutdown(self):
        self.shut_down = True


def test_telemetry_without_a_device_reads_the_processor():
    telemetry = Telemetry(CPU)
    reading = telemetry.sample()
    telemetry.close()
    assert reading["cpu_load"] >= 0
    assert not any(key.startswith("gpu") for key in reading)
    json.dumps(reading)


def test_telemetry_leaves_out_what_the_device_does_not_give():
    telemetry = Telemetry(CPU)
    nvml = telemetry._nvml = FakeNvml()
    reading = telemetry.sample()
    assert reading["gpu_mhz"] == 1410
    assert reading["gpu_temperature"] == 84
    assert reading["gpu_other_processes"] == 1
    assert "gpu_watts" not in reading
    assert reading["throttle_reasons"] == ["software power cap", "hardware thermal slowdown"]
    assert hardware.SEVERE_THROTTLING.intersection(reading["throttle_reasons"]) == {"hardware thermal slowdown"}
    telemetry.close()
    assert nvml.shut_down


def test_calibration_measures_the_machine(monkeypatch):
    ticks = iter([0.0, 9.0, 0.0, 9.0, 0.0, 2.0, 0.0, 1.0, 0.0, 5.0])  # two warm-ups, then 2, 1 and 5 seconds
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
    assert hardware.calibrate(CPU, repeats=3) == 2.0


def test_calibration_draws_no_random_numbers():
    state = torch.get_rng_state()
    assert 0 < hardware.calibrate(CPU) < 10
    assert torch.equal(torch.get_rng_state(), state)


def test_disk_reads_are_counted(tmp_path):
    before = hardware.disk_read_bytes()
    assert before is None or before >= 0
    if before is not None:
        assert hardware.disk_read_bytes() >= before


# ---------------------------------------------------------------- preflight


def test_preflight_passes_and_leaves_nothing_behind(tmp_path):
    hardware.preflight(tmp_path / "a" / "b", 1024, memory_bytes=1024)
    assert list(tmp_path.iterdir()) == []


def test_preflight_refuses_a_full_disk(tmp_path):
    with pytest.raises(UsageError, match=r"needs 1048576.0 GiB below .* are free"):
        hardware.preflight(tmp_path, 2**50)


def test_preflight_refuses_too_little_memory(tmp_path):
    with pytest.raises(UsageError, match="of memory"):
        hardware.preflight(tmp_path, memory_bytes=2**50)


def test_preflight_refuses_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        hardware.preflight(tmp_path / "runs" / "deeper")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EACCES, "Cannot write to .*Permission denied"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_preflight_names_the_obstacle(tmp_path, monkeypatch, number, message):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UsageError, match=message):
        hardware.preflight(tmp_path)


# ---------------------------------------------------------------- doctor


def test_doctor_is_content_with_this_machine(tmp_path, capsys):
    assert hardware.main(DoctorOptions(version="local", out=tmp_path)) == 0
    out = capsys.readouterr().out
    for word in ("C++ compiler", "Python.h", "/dev/shm", "torch", "GPU", "Version local", "Ready."):
        assert word in out
    assert "MISMATCH" not in out


def test_doctor_shows_what_an_official_version_expects(tmp_path, capsys):
    assert hardware.main(DoctorOptions(version="v0.5", out=tmp_path)) == 1
    out = capsys.readouterr().out
    assert "Tesla V100-SXM2-16GB" in out
    assert "Not ready: device" in out


def test_doctor_tells_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    monkeypatch.setattr(
        hardware, "package_versions", lambda names=(): dict.fromkeys(hardware.PACKAGES, "1") | {"h5py": None}
    )
    checks = hardware.requirements(tmp_path)
    failed = [check.name for check in checks if check.required and not check.ok]
    assert failed == ["h5py", "C++ compiler"]
    assert "apt install g++" in check_table(checks)


def test_doctor_works_without_torch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        hardware, "package_versions", lambda names=(): dict.fromkeys(hardware.PACKAGES, "1") | {"torch": None}
    )
    assert hardware.main(DoctorOptions(out=tmp_path)) == 1
    assert "Not ready: torch." in capsys.readouterr().out


def test_doctor_refuses_an_unknown_version(tmp_path):
    with pytest.raises(UnknownNameError, match="benchmark version"):
        hardware.main(DoctorOptions(version="v9", out=tmp_path))
