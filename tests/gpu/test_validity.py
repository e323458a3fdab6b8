"""Guards and fingerprint on a real device."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from algoperf_torch.runner import hardware, probes
from algoperf_torch.runner.validity import Guards

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool], ids=str)
@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18 + 1, 5 * 2**22 + 3])
def test_weighted_sum_is_the_same_on_device_and_host(size, dtype):
    tensor = (torch.arange(size) % 251 - 100).to(dtype)
    assert probes.weighted_sum(tensor.cuda()).item() == probes.weighted_sum(tensor).item()


def test_digest_waits_for_the_device_once(monkeypatch):
    tensors = [(f"t{i}", torch.full((1000,), float(i), device="cuda")) for i in range(50)]
    first = probes.digest(tensors)
    waits = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: waits.append(self.shape) or original(self))
    torch.cuda.set_sync_debug_mode("default")
    assert probes.digest(tensors) == first
    assert waits == [torch.Size([50])]


def test_work_that_a_thread_launches_while_the_clock_stands_is_flagged():
    device = torch.device("cuda", 0)
    guards = Guards(device, disabled={"quiet"})
    guards.arm()
    guards._check_quiet(1)
    assert guards.flags == []
    matrix = torch.ones(8192, 8192, device=device)
    stop = threading.Event()

    def launch():
        stream = torch.cuda.Stream(device)
        while not stop.is_set():
            with torch.cuda.stream(stream):
                for _ in range(8):
                    matrix @ matrix
            stream.synchronize()

    thread = threading.Thread(target=launch)
    thread.start()
    try:
        guards._check_quiet(2)
    finally:
        stop.set()
        thread.join()
    assert [flag.name for flag in guards.flags] == ["device"]


def test_steps_are_timed_on_the_device():
    times = probes.StepTimes(torch.device("cuda", 0))
    matrix = torch.ones(4096, 4096, device="cuda")
    for _ in range(2):  # the second time with the events of the first
        times.start()
        for count in (1, 20):
            for _ in range(count):
                matrix @ matrix
            times.mark()
        torch.cuda.synchronize()
        short, long = times.read()
        assert long > 3 * short > 0


def test_fingerprint_names_the_device():
    found = hardware.fingerprint(torch.device("cuda", 0))
    json.dumps(found)
    assert found["gpus"][0]["name"] == torch.cuda.get_device_name(0)
    assert found["driver"]
    assert len(found["gpus"]) == torch.cuda.device_count()


def test_telemetry_reads_the_device():
    telemetry = hardware.Telemetry(torch.device("cuda", 0))
    reading = telemetry.sample()
    telemetry.close()
    assert reading["gpu_mhz"] > 0
    assert isinstance(reading["throttle_reasons"], list)


def test_calibration_is_repeatable():
    seconds = [hardware.calibrate(torch.device("cuda", 0)) for _ in range(3)]
    assert max(seconds) < 1.2 * min(seconds)
