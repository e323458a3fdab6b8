"""Every guard: a trial in which it fires, the same trial with the guard taken out, and an honest trial without a flag."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from algoperf_torch.data.stream import TrainStream
from algoperf_torch.errors import UnknownNameError
from algoperf_torch.runner import clock, probes, validity
from algoperf_torch.runner.validity import GUARDS, Flag, Guards, IntervalFacts, Limits, merge
from algoperf_torch.spec import Parameter, ParamRole

CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("positions", torch.arange(4.0), persistent=False)
        self.register_buffer("rate", torch.tensor(0.1), persistent=False)  # as a dropout layer has

    def forward(self, x):
        return self.head(self.norm(self.linear(x)) + self.positions)


class Workload:
    def loss(self, outputs):
        return outputs.square().mean()


class Algorithm:
    def __init__(self, model):
        self.optimizer = torch.optim.AdamW(model.parameters())

    def state_dict(self):
        return self.optimizer.state_dict()


class Rig:
    """A trial as the runner would drive it, with places where a submission can misbehave."""

    def __init__(self, tmp_path, **options):
        self.tmp_path = tmp_path
        self.cleanup = contextlib.ExitStack()
        self.evaluation_file = tmp_path / "validation.bin"
        self.evaluation_file.write_bytes(bytes(64))
        self.guards = Guards(CPU, **options)
        self.model = Model()
        self.workload = Workload()
        self.stream = TrainStream(lambda draw: {"inputs": torch.full((8, 6), float(draw))}, device=CPU)
        self.context = SimpleNamespace(
            passes=SimpleNamespace(forward=0, backward=0),
            num_microbatches=1,
            parameters=[Parameter(name=name, role=ParamRole.WEIGHT) for name, _ in self.model.named_parameters()],
        )
        self.step = 0
        self.seconds = 0.0
        self.extra = {}  # added to the facts of every interval

    def build(self, during_import=None, during_init=None):
        self.guards.arm([self.evaluation_file])
        with self.guards.submission("import"):
            during_import and during_import(self)
        self.guards.watch(self.model, self.workload, self.stream)
        with self.guards.submission("initialisation"):
            self.algorithm = Algorithm(self.model)
            during_init and during_init(self)
        self.guards.built(self.algorithm, self.context)
        return self

    def train(self, steps=2, during=None, charged=None, **facts):
        """One interval of the clock; `charged` replaces the seconds that the clock says."""
        self.guards.harness_done()
        started = time.perf_counter()
        self.guards.clock_starts()
        for _ in range(steps):
            loss = self.workload.loss(self.model(next(self.stream)["inputs"]))
            loss.backward()
            self.algorithm.optimizer.step()
            self.algorithm.optimizer.zero_grad()
            self.context.passes.forward += 1
            self.context.passes.backward += 1
            self.guards.step_done()
        during and during(self)
        self.guards.clock_stops()
        self.seconds += time.perf_counter() - started if charged is None else charged
        self.step += steps
        passes = self.context.passes
        known = {"wait_seconds": 0.0, "samples": self.stream.position * 8}
        known |= {"forward_passes": passes.forward, "backward_passes": passes.backward}
        self.guards.interval(
            IntervalFacts(step=self.step, submission_seconds=self.seconds, **(known | self.extra | facts))
        )
        return self

    def evaluate(self, meanwhile=None):
        self.guards.before_evaluation(self.step)
        self.model.eval()
        with torch.no_grad():
            self.workload.loss(self.model(torch.ones(8, 6)))
        self.model.train()
        meanwhile and meanwhile(self)
        self.guards.after_evaluation(self.step)
        return self

    def finish(self):
        self.guards.finish()
        return self

    @property
    def names(self):
        return {flag.name for flag in self.guards.flags}


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Makes rigs; puts back what a submission may have left behind."""
    monkeypatch.setattr(validity, "calibrate", lambda device: 0.01)
    made, state = [], (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())

    def make(**options):
        made.append(Rig(tmp_path, **options))
        return made[-1]

    yield make
    for item in made:
        item.cleanup.close()
        item.stream.close()
        item.guards._trail.active = False
        item.guards._compiler.detach()
    torch.set_default_dtype(state[0])
    torch.set_num_threads(state[1])
    torch.set_grad_enabled(state[2])


# ---------------------------------------------------------------- what cheats and accidents look like


def patch(rig, owner, name, value):
    """Replaces an attribute as a submission would; put back after the test."""
    before = vars(owner).get(name, None)
    setattr(owner, name, value)
    rig.cleanup.callback(lambda: delattr(owner, name) if before is None else setattr(owner, name, before))


def patches_the_clock(rig):
    rig.build().train(during=lambda r: patch(r, time, "perf_counter", lambda: 0.0)).evaluate()


def stops_the_clock_early(rig):
    rig.build().train(during=lambda r: time.sleep(0.1), charged=0.001).evaluate()


def trains_during_evaluation(rig):
    def update(r):
        with torch.no_grad():
            r.model.head.weight[0, 0] += 1e-7

    rig.build().train().evaluate(meanwhile=update)


def refines_its_state_during_evaluation(rig):
    def update(r):
        next(iter(r.algorithm.optimizer.state.values()))["exp_avg"][0] += 1.0

    rig.build().train().evaluate(meanwhile=update)


def trains_in_its_constructor(rig):
    rig.build(during_init=lambda r: nn.init.zeros_(r.model.head.weight)).train().evaluate()


def edits_a_constant(rig):
    rig.build().train(during=lambda r: r.model.positions.add_(1.0)).evaluate()


def replaces_a_module(rig):
    rig.build().train(during=lambda r: setattr(r.model, "norm", nn.Identity())).evaluate()


def freezes_a_parameter(rig):
    rig.build().train(during=lambda r: r.model.head.bias.requires_grad_(False)).evaluate()


def leaves_a_forward_hook(rig):
    rig.build().train(during=lambda r: r.model.head.register_forward_hook(lambda *a: None)).evaluate()


def blows_up(rig):
    def explode(r):
        with torch.no_grad():
            r.model.head.bias[1] = float("inf")

    rig.build().train(during=explode).evaluate()


def draws_a_batch_during_evaluation(rig):
    rig.build().train().evaluate(meanwhile=lambda r: next(r.stream))


def draws_random_numbers_in_evaluation(rig):
    rig.build().train().evaluate(meanwhile=lambda r: torch.rand(1))


def switches_the_default_dtype(rig):
    rig.build().train(during=lambda r: torch.set_default_dtype(torch.float64))


def sets_a_variable(rig):
    def update(r):
        patch_environment(r, "NVIDIA_TF32_OVERRIDE", "1")

    rig.build().train(during=update).evaluate()


def patch_environment(rig, key, value):
    assert key not in os.environ
    os.environ[key] = value
    rig.cleanup.callback(os.environ.pop, key)


def takes_more_threads(rig):
    rig.build().train(during=lambda r: torch.set_num_threads(torch.get_num_threads() + 1)).evaluate()


def works_in_a_thread(rig):
    stop, started = threading.Event(), threading.Event()

    def spin():
        started.set()
        while not stop.is_set():
            sum(range(1000))

    def launch(r):
        thread = threading.Thread(target=spin, name="background")
        thread.start()
        started.wait()
        r.cleanup.callback(thread.join)
        r.cleanup.callback(stop.set)

    rig.build().train(during=launch).evaluate(meanwhile=lambda r: time.sleep(0.15))


def works_in_a_child(rig):
    def launch(r):
        child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        r.cleanup.callback(child.wait)
        r.cleanup.callback(child.kill)

    rig.build().train(during=launch).evaluate(meanwhile=lambda r: time.sleep(0.3))


def reads_the_evaluation_data(rig):
    rig.build().train(during=lambda r: r.evaluation_file.read_bytes()).evaluate()


def starts_a_process(rig):
    rig.build().train(during=lambda r: subprocess.run([sys.executable, "--version"], capture_output=True, check=True))


def connects(rig):
    def dial(r):
        with socket.socket() as server, socket.socket() as client:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())

    rig.build().train(during=dial)


def makes_passes_in_its_constructor(rig):
    def forward(r):
        r.context.passes.forward += 1

    rig.build(during_init=forward).train().evaluate()


def hides_many_steps_in_one(rig):
    rig.build().train(backward_passes=500).evaluate()


def recompiles_all_the_time(rig):
    rig.build().train().evaluate()
    rig.guards._compiler.stage = "training"
    for number in range(1, 21):
        rig.guards._compiler._start(SimpleNamespace(compile_id=f"0/{number}"))
        rig.guards._compiler._end(None)
    rig.train()


def waits_for_data(rig):
    rig.build().train(charged=10.0, wait_seconds=1.0).evaluate()


def slows_down(rig):
    rig.build().train(steps=100, charged=2.0).evaluate().train(steps=100, charged=9.0)


def reads_from_disk(rig):
    bytes_read = iter([0, 500 * 2**20])
    patch(rig, validity, "disk_read_bytes", lambda: next(bytes_read))
    rig.guards._disk_read = 0
    rig.guards._page_cache = "warm"
    rig.build().train().train()


def throttles(rig):
    rig.build()
    rig.guards._telemetry.sample = lambda: {"throttle_reasons": ["hardware thermal slowdown"]}
    rig.train()


def machine_slows_down(rig):
    rig.build().train()
    patch(rig, validity, "calibrate", lambda device: 0.02)
    rig.finish()


CASES = {
    "identity": (patches_the_clock, "void"),
    "clock": (stops_the_clock_early, "void"),
    "weights_digest": (trains_during_evaluation, "void"),
    "state_digest": (refines_its_state_during_evaluation, "void"),
    "initial_weights": (trains_in_its_constructor, "void"),
    "constants": (edits_a_constant, "void"),
    "structure": (replaces_a_module, "void"),
    "trainable": (freezes_a_parameter, "warn"),
    "hooks": (leaves_a_forward_hook, "void"),
    "finite": (blows_up, "warn"),
    "stream": (draws_a_batch_during_evaluation, "void"),
    "random_state": (draws_random_numbers_in_evaluation, "warn"),
    "precision": (switches_the_default_dtype, "void"),
    "environment": (sets_a_variable, "warn"),
    "processors": (takes_more_threads, "void"),
    "threads": (works_in_a_thread, "void"),
    "processes": (works_in_a_child, "void"),
    "quiet": (works_in_a_thread, "void"),
    "files": (reads_the_evaluation_data, "void"),
    "spawned": (starts_a_process, "void"),
    "network": (connects, "void"),
    "initialisation": (makes_passes_in_its_constructor, "warn"),
    "passes": (hides_many_steps_in_one, "warn"),
    "recompilation": (recompiles_all_the_time, "warn"),
    "data_stall": (waits_for_data, "warn"),
    "step_time": (slows_down, "warn"),
    "cold_cache": (reads_from_disk, "warn"),
    "throttling": (throttles, "warn"),
    "calibration": (machine_slows_down, "warn"),
}


def test_every_guard_has_a_case():
    assert set(CASES) == set(GUARDS) - {"device"}  # that one has a test of its own


@pytest.mark.parametrize("name", CASES)
def test_guard_fires(name, rig):
    cheat, severity = CASES[name]
    trial = rig(audit=True)
    cheat(trial)
    found = [flag for flag in trial.guards.flags if flag.name == name]
    assert found, trial.guards.flags
    assert severity in {flag.severity for flag in found}
    assert all(flag.reason for flag in found)
    assert trial.guards.section()["valid"] is (severity == "warn")


@pytest.mark.parametrize("name", CASES)
def test_guard_is_silent_when_taken_out(name, rig):
    trial = rig(audit=True, disabled={name})
    CASES[name][0](trial)
    assert name not in trial.names
    assert trial.guards.section()["disabled_guards"] == [name]


def test_honest_trial_raises_no_flag(rig):
    trial = rig(audit=True, page_cache="warm", limits=Limits(stall_seconds=1.0, step_time_seconds=100.0)).build()
    for _ in range(4):
        trial.train(steps=3).evaluate()
    trial.finish()
    assert trial.guards.flags == []
    assert trial.guards.section()["valid"]


def test_unknown_guard():
    with pytest.raises(UnknownNameError, match="Unknown guard 'weight_digest'"):
        Guards(CPU, disabled={"weight_digest"})


# ---------------------------------------------------------------- what must not be taken for a cheat


def test_compiled_and_threaded_training_is_honest(rig):
    """The compiler patches torch, starts threads and leaves wrappers behind; a pool of the submission lies idle."""
    trial = rig(audit=True, disabled={"data_stall", "step_time"}).build()
    pool = concurrent.futures.ThreadPoolExecutor(2)
    trial.cleanup.callback(pool.shutdown)
    compiled = torch.compile(trial.model, backend="aot_eager", fullgraph=True, dynamic=False)

    def work(r):
        for _ in range(2):
            compiled(torch.ones(8, 6)).sum().backward()
        list(pool.map(lambda n: torch.ones(50, 50) @ torch.ones(50, 50), range(8)))

    for _ in range(3):
        trial.train(during=work).evaluate()
    assert trial.guards.flags == []
    assert trial.guards.section()["compilations"]["training"]["graphs"] >= 1
    assert trial.guards.section()["compilations"]["training"]["seconds"] > 0


def test_averaged_weights_are_honest(rig):
    """`prepare_for_eval` swaps weights before the digest, `resume_training` after it."""
    trial = rig().build()
    for _ in range(2):
        trial.train(during=lambda r: r.model.head.weight.data.mul_(0.5)).evaluate()
        with torch.no_grad():
            trial.model.head.weight.mul_(2.0)
    assert trial.guards.flags == []


def test_dropout_rate_may_change(rig):
    trial = rig().build(during_init=lambda r: r.model.rate.fill_(0.3)).train(during=lambda r: r.model.rate.fill_(0.2))
    assert trial.evaluate().guards.flags == []


def test_removed_hook_is_honest(rig):
    def capture(r):
        handle = r.model.head.register_forward_hook(lambda *a: None)
        r.model(torch.ones(8, 6))
        handle.remove()

    assert rig().build().train(during=capture).evaluate().guards.flags == []


def test_thread_that_only_waits_is_a_warning(rig):
    stop = threading.Event()

    def launch(r):
        thread = threading.Thread(target=stop.wait, name="waiting")
        thread.start()
        r.cleanup.callback(thread.join)
        r.cleanup.callback(stop.set)

    trial = rig().build().train(during=launch).evaluate(meanwhile=lambda r: time.sleep(0.05))
    assert [(flag.name, flag.severity) for flag in trial.guards.flags] == [("threads", "warn")]
    assert "'waiting'" in trial.guards.flags[0].reason
    assert trial.guards.section()["foreign_workers"] == ["waiting"]


def test_harness_reads_evaluation_data_while_the_clock_stands(rig):
    trial = rig(audit=True).build().train().evaluate(meanwhile=lambda r: r.evaluation_file.read_bytes())
    assert trial.train().evaluate().guards.flags == []


def test_injected_clock_is_not_compared(rig):
    trial = rig(real_clock=False).build().train(during=lambda r: time.sleep(0.1), charged=0.001).evaluate()
    assert trial.guards.flags == []


def test_steps_that_do_more_may_take_longer(rig):
    trial = rig().build().train(steps=100, charged=2.0).evaluate()
    trial.train(steps=100, charged=9.0, forward_passes=300, backward_passes=300)
    assert trial.guards.flags == []


# ---------------------------------------------------------------- details


def test_memory_map_of_evaluation_data_is_found_without_an_open_event(rig):
    """Libraries in C open files without telling the interpreter."""

    def read(r):
        r.mapped = torch.from_file(str(r.evaluation_file), size=16)

    trial = rig(audit=False).build().train(during=read)
    assert "files" in trial.names
    assert "validation.bin" in trial.guards.flags[0].reason


def test_harness_may_map_evaluation_data(rig):
    """Warming up and evaluating do so, and keep the files open."""

    def read(r):
        r.mapped = torch.from_file(str(r.evaluation_file), size=16)

    trial = rig(audit=True).build()
    read(trial)  # between construction and the first step
    assert trial.train().evaluate(meanwhile=read).train().evaluate().guards.flags == []


class Busy:
    """A device that has been given work behind the harness's back: each wait for it takes 5 ms."""

    def __init__(self, seconds):
        self.seconds = seconds

    def synchronize(self, device):
        time.sleep(self.seconds)


@pytest.mark.parametrize(("seconds", "names"), [(0.005, {"device"}), (0.0, set())])
@pytest.mark.parametrize("disabled", [(), ("device",)])
def test_device_that_is_not_idle(seconds, names, disabled, rig, monkeypatch):
    trial = rig(disabled=disabled).build()
    monkeypatch.setattr(torch.cuda, "synchronize", Busy(seconds).synchronize)
    monkeypatch.setattr(trial.guards, "_device", torch.device("cuda"))
    trial.guards._check_quiet(1)
    assert trial.names == names - set(disabled)


def test_import_is_watched(rig):
    trial = rig(audit=True).build(during_import=lambda r: r.evaluation_file.read_bytes())
    assert "files" in trial.names


def test_own_functions_are_watched(rig):
    trial = rig().build()
    patch(trial, clock.WallClock, "stop", lambda self: None)
    assert "algoperf_torch.runner.clock.WallClock.stop" in trial.train().guards.flags[0].reason


@pytest.mark.parametrize(
    ("owner", "name", "reason"),
    [
        (functional, "cross_entropy", "torch.nn.functional.cross_entropy"),
        (torch.cuda, "synchronize", "torch.cuda.synchronize"),
        (torch.Tensor, "item", "torch.Tensor.item"),
        (nn.Linear, "forward", "Linear.forward"),
        (Workload, "loss", "Workload.loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_patched_function_is_named(owner, name, reason, rig):
    trial = rig().build()
    original = getattr(owner, name)
    patch(trial, owner, name, lambda *args, **kwargs: original(*args, **kwargs))
    trial.train()
    assert reason in "".join(flag.reason for flag in trial.guards.flags if flag.name == "identity")


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (functional, "cross_entropy", functional.mse_loss),
        (functional, "nll_loss", torch.compiler.disable(functional.mse_loss)),
        (clock.WallClock, "stop", clock.WallClock.start),
    ],
    ids=["torch by torch", "torch by a wrapper of torch", "ours by ours"],
)
def test_one_function_cannot_stand_in_for_another(owner, name, value, rig):
    trial = rig().build().train(during=lambda r: patch(r, owner, name, value))
    assert name in trial.guards.flags[0].reason


def test_compiling_the_model_in_place_is_no_override(rig):
    trial = rig(disabled={"data_stall", "step_time"}).build()
    trial.train(during=lambda r: r.model.compile(backend="eager")).evaluate()
    assert trial.guards.flags == []


def test_code_swapped_inside_a_function_is_seen(rig):
    trial = rig().build()
    original = functional.l1_loss.__code__
    functional.l1_loss.__code__ = (lambda *a, **k: None).__code__
    trial.cleanup.callback(setattr, functional.l1_loss, "__code__", original)
    assert "l1_loss" in trial.train().guards.flags[0].reason


def test_method_overridden_on_an_instance_is_seen(rig):
    trial = rig().build().train(during=lambda r: setattr(r.workload, "loss", lambda outputs: outputs.sum() * 0))
    assert [flag.reason for flag in trial.guards.flags] == ["replaced: workload.loss (added)"]


def test_forward_overridden_on_the_model_is_seen(rig):
    trial = rig().build()
    forward = trial.model.head.forward
    trial.train(during=lambda r: setattr(r.model.head, "forward", lambda x: forward(x)))
    assert [flag.reason for flag in trial.guards.flags] == ["replaced: model.head.forward (added)"]


def test_builtin_hidden_inside_the_harness_is_seen(rig):
    trial = rig().build().train(during=lambda r: patch(r, clock, "max", lambda *a: 0.0))
    assert [flag.reason for flag in trial.guards.flags] == ["replaced: algoperf_torch.runner.clock.max (added)"]


def test_kernel_of_the_library_replaced_is_seen(rig):
    def override(r):
        r.library = torch.library.Library("aten", "IMPL")
        r.cleanup.callback(r.library._destroy)
        with warnings.catch_warnings(action="ignore"):  # torch itself warns of it, once
            r.library.impl("sinc", lambda x: x, "CPU")

    trial = rig().build().train(during=override)
    assert "kernel of aten/sinc/CPU" in trial.guards.flags[0].reason


def test_signal_handler_is_watched(rig):
    trial = rig().build()
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    trial.cleanup.callback(signal.signal, signal.SIGTERM, before)
    assert "handler of SIGTERM" in trial.train().guards.flags[0].reason


def test_lasting_finding_is_told_once(rig):
    trial = rig().build()
    patch(trial, time, "perf_counter", lambda: 0.0)
    guards = trial.guards
    for step in range(1, 4):
        guards.interval(
            IntervalFacts(
                step=step, submission_seconds=step, wait_seconds=0, samples=8, forward_passes=step, backward_passes=step
            )
        )
    assert [(flag.name, flag.step, flag.count) for flag in guards.flags] == [("identity", 1, 3)]


def test_section_is_json_and_counts(rig):
    trial = rig().build().train(steps=1).evaluate().train(steps=4).evaluate().finish()
    section = json.loads(json.dumps(trial.guards.section()))
    assert [row["steps"] for row in section["intervals"]] == [1, 4]
    assert [row["samples"] for row in section["intervals"]] == [8, 32]
    assert section["samples_per_step"] == 8
    assert section["forward_passes_per_step"] == section["backward_passes_per_step"] == 1
    assert section["weights_in_products"] == 6 * 4 + 4 * 3
    assert section["calibration_seconds"] == [0.01, 0.01]
    first, second = (row["weights"] for row in section["intervals"])
    assert first != second
    for row in section["intervals"]:
        assert row["independent_seconds"] <= row["submission_seconds"]
        assert row["threads"] >= 1
    assert 0 < section["intervals"][1]["median_step_seconds"] <= section["intervals"][1]["slowest_step_seconds"]
    assert section["step_variation"] == section["intervals"][1]["step_variation"]


def test_microbatches_are_no_hidden_steps(rig):
    trial = rig()
    trial.context.num_microbatches = 64
    assert trial.build().train(steps=1, forward_passes=64, backward_passes=64).evaluate().guards.flags == []


def test_single_steps_are_timed_but_not_the_evaluation_between_them(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 100.0, 104.0])
    monkeypatch.setattr(probes, "_perf_counter", lambda: next(ticks))
    times = probes.StepTimes(CPU)
    times.start()
    times.mark()
    times.mark()
    times.start()
    times.mark()
    assert times.read() == [1.0, 2.0, 4.0]
    assert times.read() == []


def test_marks_between_two_readings_are_bounded():
    times = probes.StepTimes(CPU)
    times.start()
    for _ in range(25_000):
        times.mark()
    assert len(times.read()) == 20_000 - 1
    times.start()
    times.mark()
    assert len(times.read()) == 1


def test_resumed_trial_keeps_flags_and_intervals(rig):
    first = rig().build().train(steps=1).evaluate().train(during=lambda r: torch.set_num_threads(7)).evaluate()
    saved = json.loads(json.dumps(first.guards.state_dict()))
    torch.set_num_threads(1)
    second = rig().build()
    second.guards.load_state_dict(saved)
    second.step, second.seconds = first.step, first.seconds
    second.context.passes.forward = second.context.passes.backward = first.step
    second.stream.position = first.step
    second.train(steps=2).evaluate()
    section = second.guards.section()
    assert [flag["name"] for flag in section["flags"]] == ["processors"]
    assert [row["steps"] for row in section["intervals"]] == [1, 2, 2]
    assert section["intervals"][-1]["samples"] == 16
    assert not section["valid"]
    other = rig(rank=1).build()
    other.guards.load_state_dict(saved)
    assert other.guards.flags == []  # rank 0 has them; merged, they would be there twice


def test_flags_of_all_ranks_are_merged(rig):
    sections = [rig(rank=rank).build().train().evaluate().guards.section() for rank in range(2)]
    assert merge(sections)["valid"]
    sections[1]["flags"] = [{"name": "quiet", "severity": "void", "rank": 1}]
    sections[1]["valid"] = False
    assert merge(sections)["flags"] == sections[1]["flags"]
    assert not merge(sections)["valid"]


def test_guards_draw_no_random_numbers(rig):
    torch.manual_seed(3)
    trial = rig(audit=True).build().train().evaluate()
    state = torch.get_rng_state()
    trial.train().evaluate().finish()
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------- instruments

VARIANTS = {
    "one bit": lambda t: t.view(torch.int32).view(-1)[1234].add_(1),
    "swapped": lambda t: _swap(t, 5, 900_000),
    "neighbours swapped": lambda t: _swap(t, 262_143, 262_144),
    "all signs": lambda t: t.neg_(),
    "two signs": lambda t: _negate(t, 3, 700_001),
    "rows reversed": lambda t: t.copy_(t.flip(0).clone()),
    "scaled": lambda t: t.mul_(1.0000001),
}


def _swap(tensor, one, other):
    flat = tensor.view(-1)
    flat[one], flat[other] = flat[other].clone(), flat[one].clone()


def _negate(tensor, *places):
    for place in places:
        tensor.view(-1)[place].neg_()


@pytest.mark.parametrize("variant", VARIANTS)
def test_digest_sees(variant):
    tensor = torch.sin(torch.arange(1_000_003.0) * 0.37)[: 1000 * 1000].reshape(1000, 1000).clone()
    on_host, weighted = probes.digest([("w", tensor)]), int(probes.weighted_sum(tensor))
    assert probes.digest([("w", tensor.clone())]) == on_host
    assert int(probes.weighted_sum(tensor.clone())) == weighted
    VARIANTS[variant](tensor)
    assert probes.changed(on_host, probes.digest([("w", tensor)])) == ["w"]
    assert int(probes.weighted_sum(tensor)) != weighted


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.ones(7, dtype=torch.bfloat16),
        torch.tensor([True, False, True]),
        torch.ones(3, 4, dtype=torch.float64).t(),
        torch.ones(5, dtype=torch.complex64).conj(),
        torch.arange(9, dtype=torch.uint8),
        torch.ones(4, 4).to_sparse(),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_digest_takes_any_tensor(tensor):
    assert probes.digest([("x", tensor)]) == probes.digest([("x", tensor.clone())])
    if tensor.layout is torch.strided:
        assert probes.weighted_sum(tensor).dtype == torch.int64


def test_digest_tells_dtype_shape_and_name_apart():
    zeros = torch.zeros(4)
    values = [("a", zeros), ("b", zeros.reshape(2, 2)), ("c", zeros.int()), ("d", 0), ("e", 0.0), ("f", False)]
    digests = probes.digest(values)
    assert len(set(digests.values())) == len(values)
    assert probes.summary(probes.digest([("a", zeros)])) != probes.summary(probes.digest([("b", zeros)]))


def test_state_is_flattened_with_paths():
    state = {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
    names = [name for name, _ in probes.flatten(state)]
    assert names == ["state.0.exp_avg", "state.0.step", "groups[0].lr", "groups[0].betas[0]", "groups[0].betas[1]"]


def test_objects_in_the_state_have_no_address_in_the_digest():
    assert probes.digest(probes.flatten({"x": object()})) == probes.digest(probes.flatten({"x": object()}))


def test_audit_hook_in_a_fresh_process(tmp_path):
    """The installed hook sees what `builtins.open` and `os.open` do, through symbolic links too, and lets the rest pass."""
    (tmp_path / "validation.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "validation.bin")
    code = """
import os, sys
from algoperf_torch.runner import probes
trail = probes.AuditTrail(frozenset([os.path.realpath(sys.argv[1] + "/validation.bin")]))
probes.install(trail)
open(sys.argv[1] + "/validation.bin").close()
trail.active = True
open(sys.argv[1] + "/link").close()
os.close(os.open(sys.argv[1] + "/validation.bin", os.O_RDONLY))
open(sys.argv[1] + "/other", "w").close()
trail.active = False
print(len(trail.opened), len(trail.processes), len(trail.connections))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["2", "0", "0"]


def test_flag_is_plain_data():
    flag = Flag("quiet", "busy", 3, "void")
    assert (flag.rank, flag.count) == (0, 1)


def test_importing_an_algorithm_replaces_nothing():
    """In a fresh process: in this one, other tests have imported all operations."""
    code = """
import torch
from importlib import import_module
from algoperf_torch.optim.registry import ALGORITHMS
from algoperf_torch.runner.validity import Guards
guards = Guards(torch.device("cpu"))
guards.arm()
for record in ALGORITHMS.values():
    import_module("algoperf_torch.optim." + record.target.partition(":")[0])
print(*guards._identities.changes(), sep="; ")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""
