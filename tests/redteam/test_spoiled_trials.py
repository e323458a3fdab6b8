"""What else spoils a benchmark: the machine, the data, the harness's own mistakes. Prevented, or flagged with a reason.

The numbers in brackets count the lines of the list that `docs/validity.md` reproduces.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import time
from dataclasses import replace

import pytest
import torch

from algoperf_torch.data.stream import TrainStream
from algoperf_torch.errors import DataError, HardwareMismatchError
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.runner import build, distributed, evaluate, seeds, validity
from algoperf_torch.runner.audit import audit
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.hardware import Telemetry
from algoperf_torch.runner.validity import Limits
from algoperf_torch.spec import Split
from algoperf_torch.versions import load_version
from algoperf_torch.workloads.digits import data as digits_data
from algoperf_torch.workloads.digits.workload import DigitsWorkload
from algoperf_torch.workloads.layers import BatchNorm, set_batch_norm_update
from algoperf_torch.workloads.registry import build_workload

ALONE = Ranks(0, 1, 0, torch.device("cpu"), None)


def raw_flags(outcome):
    return {flag["name"] for flag in outcome.summary["validity"]["flags"]}


def rows(outcome):
    with (outcome.directory / "eval_measurements.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def version_file(tmp_path):
    """`version_file("[protocol]", 'page_cache = "warm"')`: a version like `local` with some lines changed."""
    numbers = itertools.count()

    def write(*lines, head=()):
        path = tmp_path / f"version_{next(numbers)}.toml"
        path.write_text("\n".join(['inherits = "local"', 'name = "test"', *head, *lines]))
        return str(path)

    return write


# ---------------------------------------------------------------- the machine and the data path


def test_1_cold_page_cache_is_flagged(attack, version_file, monkeypatch):
    reads = itertools.count(step=200 * 2**20)
    monkeypatch.setattr(validity, "disk_read_bytes", lambda: next(reads))
    warm = version_file("[protocol]", 'page_cache = "warm"')
    outcome = attack(version=warm)
    assert outcome.flags == {"cold_cache": "warn"}
    assert "200 MiB were read from disk under a warm policy" in outcome.reason("cold_cache")
    assert attack(version=warm, disabled={"cold_cache"}).flags == {}
    assert attack().flags == {}  # a version that does not promise a warm cache only records the bytes


def test_2_input_bound_run_is_flagged(attack, monkeypatch):
    original = DigitsWorkload.train_batches

    def slow_batches(self, **arguments):
        make_batch = original(self, **arguments)

        def make(draw):
            time.sleep(0.05)
            return make_batch(draw)

        return make

    monkeypatch.setattr(DigitsWorkload, "train_batches", slow_batches)
    outcome = attack(max_steps=8)
    assert "data_stall" in raw_flags(outcome)
    assert outcome.summary["validity"]["data_stall_fraction"] > 0.03
    assert "data_stall" not in raw_flags(attack(max_steps=8, disabled={"data_stall"}))


def test_3_other_hardware_is_refused_before_anything_is_written(attack, version_file, tmp_path):
    machine = ("[hardware]", 'device = "Tesla V100-SXM2-16GB"', "num_devices = 8")
    outcome = attack(version=version_file(*machine, head=("official = true",)))
    assert isinstance(outcome.error, HardwareMismatchError)
    assert outcome.exit_code == 2
    assert "Tesla V100-SXM2-16GB" in str(outcome.error)
    assert outcome.directory is None
    unofficial = attack(version=version_file(*machine))  # without the refusal it runs, and the difference is on record
    assert [check["name"] for check in unofficial.summary["hardware_check"] if not check["ok"]] == [
        "device",
        "number of devices",
    ]


def test_4_throttling_is_flagged(attack, monkeypatch):
    monkeypatch.setattr(Telemetry, "sample", lambda self: {"throttle_reasons": ["hardware power brake"]})
    outcome = attack()
    assert outcome.flags == {"throttling": "warn"}
    assert "hardware power brake" in outcome.reason("throttling")
    assert attack(disabled={"throttling"}).flags == {}


def test_4_noisy_neighbour_is_flagged(attack, monkeypatch):
    speeds = itertools.cycle([0.01, 0.03])
    monkeypatch.setattr(validity, "calibrate", lambda device: next(speeds))
    assert "calibration" in raw_flags(attack())
    assert "calibration" not in raw_flags(attack(disabled={"calibration"}))


class Exhausted(torch.OutOfMemoryError):
    pass


def test_5_running_out_of_memory_in_the_harness_is_not_the_algorithms_failure(attack, monkeypatch):
    in_step = attack(
        """
        def training_step(self, batch):
            raise torch.OutOfMemoryError("no memory left")
        """
    )
    assert (in_step.summary["status"], in_step.summary["void"]) == ("out_of_memory", False)

    def exhausted(*_, **__):
        raise Exhausted("no memory left")

    monkeypatch.setattr(DigitsWorkload, "evaluate_chunk", exhausted)
    in_evaluation = attack()
    assert (in_evaluation.summary["status"], in_evaluation.summary["void"]) == ("out_of_memory", True)


def test_6_truncated_data_are_refused(attack, tmp_path, monkeypatch):
    table = gzip.decompress(digits_data.digits_file().read_bytes())
    short = tmp_path / "digits.csv.gz"
    short.write_bytes(gzip.compress(b"".join(table.splitlines(keepends=True)[:200])))
    monkeypatch.setattr(digits_data, "digits_file", lambda: short)
    outcome = attack()
    assert isinstance(outcome.error, DataError)
    assert "checksum" in str(outcome.error)
    assert outcome.directory is None


def test_7_empty_split_is_refused(attack, monkeypatch):
    original = DigitsWorkload.open

    def emptied(self):
        original(self)
        self.spec = replace(self.spec, num_validation=0)

    monkeypatch.setattr(DigitsWorkload, "open", emptied)
    outcome = attack()
    assert outcome.summary["status"] == "data_error"
    assert "the validation split is empty" in outcome.summary["error"]["message"]
    assert outcome.summary["void"]


# ---------------------------------------------------------------- time


def test_8_budget_ends_a_trial_that_is_never_evaluated(attack):
    outcome = attack(max_steps=None, budget="1s", eval_period=1e6, clock="steps:0.1")
    assert outcome.summary["status"] == "budget_exhausted"
    assert outcome.summary["result"]["steps"] == 10
    assert [row["global_step"] for row in rows(outcome)] == ["1"]


def test_9_no_free_evaluation_after_the_budget(attack):
    """The hook before the evaluation uses up what was left of the budget."""
    slow_hook = """
        def prepare_for_eval(self):
            if self.updates > 1:
                time.sleep(1.0)
        """
    outcome = attack(slow_hook, max_steps=6, budget="0.9s", eval_period=0.05)
    assert outcome.summary["result"]["submission_seconds"] > 0.9
    assert [float(row["score"]) < 0.9 for row in rows(outcome)] == [True]
    assert all(finding.severity != "invalid" for trial in audit([outcome.directory]) for finding in trial.findings)


class Device:
    """Pretends to be a device that works on its own: launching costs nothing, waiting costs what was launched."""

    pending = 0.0

    @classmethod
    def synchronize(cls, *_):
        time.sleep(cls.pending)
        cls.pending = 0.0


def test_11_asynchronous_work_is_charged_to_the_step(attack, monkeypatch):
    launch = """
        def training_step(self, batch):
            super().training_step(batch)
            torch.launched(0.1)
        """

    def launched(seconds):
        Device.pending += seconds

    monkeypatch.setattr(torch, "launched", launched, raising=False)
    monkeypatch.setattr(distributed.Ranks, "synchronize", Device.synchronize)
    outcome = attack(launch, max_steps=5)
    assert outcome.summary["result"]["submission_seconds"] >= 0.5
    monkeypatch.setattr(distributed.Ranks, "synchronize", lambda self: None)  # without the wait nothing is charged
    assert attack(launch, max_steps=5).summary["result"]["submission_seconds"] < 0.5


def test_12_slow_clock_is_noticed_even_where_no_function_was_replaced(attack):
    """The guards' clock is not the runner's: here the harness itself forgets to charge half of the time."""
    forgetful = """
    from algoperf_torch.runner import clock
    clock.WallClock.stop.__globals__["SHARE"] = 0.1

    def stop(self):
        self._synchronize()
        self.seconds += SHARE * (clock.perf_counter() - self._started)
        self._started = None
    stop.__globals__["SHARE"] = 0.1
    clock.WallClock.stop = stop
    """
    slow_step = """
        def training_step(self, batch):
            super().training_step(batch)
            time.sleep(0.05)
        """
    assert attack(slow_step, before=forgetful, disabled={"identity"}).flags == {"clock": "void"}
    assert attack(slow_step, before=forgetful, disabled={"identity", "clock"}).flags == {}


HIDDEN_COMPILATION = """
    def __init__(self, model, hyperparameters, context):
        super().__init__(model, hyperparameters, context)
        for size in range(1, 4):
            torch.compile(lambda x: x.sin() * size, backend="eager")(torch.ones(size))
    """


def test_13_compilation_before_the_clock_is_flagged(attack):
    limits = Limits(init_compile_seconds=0.001)
    outcome = attack(HIDDEN_COMPILATION, limits=limits)
    assert outcome.flags == {"initialisation": "warn"}
    assert "seconds of compilation before the clock" in outcome.reason("initialisation")
    assert outcome.summary["validity"]["setup"]["graphs"] >= 1
    assert attack(HIDDEN_COMPILATION, limits=limits, disabled={"initialisation"}).flags == {}


def test_13_compilation_in_a_step_is_charged(attack):
    compile_in_step = """
        def training_step(self, batch):
            super().training_step(batch)
            size = self.updates
            torch.compile(lambda x: x.sin() * size, backend="eager")(torch.ones(size))
        """
    section = attack(compile_in_step).summary["validity"]
    assert section["compilations"]["training"]["graphs"] >= 1
    first = section["intervals"][0]
    assert 0 < first["compile_seconds"] < first["submission_seconds"]


def test_14_samples_and_passes_are_reported_beside_steps(attack):
    outcome = attack(
        """
        def select_batch(self, stream):
            return [next(stream) for _ in range(3)]

        def training_step(self, batches):
            for batch in batches:
                super().training_step(batch)
        """
    )
    section = outcome.summary["validity"]
    assert section["samples_per_step"] == 3 * 128
    assert section["forward_passes_per_step"] == section["backward_passes_per_step"] == 3
    assert outcome.flags == {}  # three passes a step are an algorithm, not a trick


# ---------------------------------------------------------------- evaluation and data use


def evaluate_with(eval_batch_size, model, workload):
    return evaluate.evaluate(
        workload,
        model,
        lambda batch: workload.forward(model, batch),
        ALONE,
        seed=3,
        eval_batch_size=eval_batch_size,
    )


def test_15_evaluation_does_not_depend_on_the_batch_size():
    workload = build_workload("digits")
    workload.open()
    torch.manual_seed(1)
    model = workload.build_model()
    reference = evaluate_with(None, model, workload)
    assert reference["validation/num_examples"] == 300
    for size in (14, 64, 1000):  # a chunk is half of it, and the last one is padded
        assert evaluate_with(size, model, workload) == pytest.approx(reference, rel=1e-6)


def test_15_padding_that_counts_is_refused(attack, monkeypatch):
    original = DigitsWorkload.metric_sums

    def careless(self, outputs, batch):
        return original(self, outputs, {**batch, "weights": torch.ones_like(batch["weights"])})

    monkeypatch.setattr(DigitsWorkload, "metric_sums", careless)
    monkeypatch.setattr(DigitsWorkload, "eval_chunks_per_batch", 7)  # 300 examples in chunks of 43
    outcome = attack()
    assert (outcome.summary["status"], outcome.summary["void"]) == ("data_error", True)
    assert "An evaluation went over 301 examples, expected 300" in outcome.summary["error"]["message"]


def test_16_batch_norm_survives_being_switched_off_twice():
    norm = BatchNorm(3)
    x = torch.linspace(-1, 1, 24).reshape(8, 3)
    set_batch_norm_update(norm, False)
    norm(x)
    set_batch_norm_update(norm, False)
    norm(x)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    set_batch_norm_update(norm, True)
    norm(x)
    assert torch.allclose(norm.running_mean, norm.momentum * x.mean(0))


def test_18_evaluation_error_ends_the_trial(attack, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the metric cannot be computed")

    monkeypatch.setattr(DigitsWorkload, "metrics", broken)
    outcome = attack()
    assert outcome.summary["status"] == "harness_error"
    assert outcome.summary["void"]
    assert "the metric cannot be computed" in outcome.summary["error"]["message"]
    assert outcome.summary["result"]["steps"] <= 1


def test_19_submission_cannot_change_the_evaluation_batch_size(attack, monkeypatch):
    sizes = []
    original = DigitsWorkload.chunk_size
    monkeypatch.setattr(
        DigitsWorkload, "chunk_size", lambda self, size=None: sizes.append(size) or original(self, size)
    )
    attack("eval_batch_sizes = {'digits': 1}\nget_eval_batch_size = staticmethod(lambda name: 1)")
    assert set(sizes) == {load_version("local").terms("digits").eval_batch_size}


# ---------------------------------------------------------------- rules


def test_20_context_tells_no_workload(attack, monkeypatch):
    """No public value of the context, however deep, holds the name of workload or dataset."""
    seen = []
    original = build.TrainingContext

    def remember(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(build, "TrainingContext", remember)
    attack()
    (context,) = seen
    texts = [repr(getattr(context, name)) for name in public_values(context)]
    assert not [text for text in texts if "digits" in text.lower()]
    context.scalars = ["digits"]
    assert [name for name in public_values(context) if "digits" in repr(getattr(context, name))] == ["scalars"]


def public_values(context: TrainingContext) -> list[str]:
    """Names of the context's public data; the model is its own business, the engine is not for submissions."""
    return [
        name
        for name in dir(context)
        if not name.startswith("_") and name not in ("engine", "model") and not callable(getattr(context, name))
    ]


def test_21_seeds_are_distinct_by_construction():
    drawn = {
        seeds.draw_trial_seed(run_seed, workload="digits", study=study, trial=trial)
        for run_seed in (0, 1)
        for study in range(5)
        for trial in range(1, 6)
    }
    assert len(drawn) == 50


def test_23_impossible_step_time_is_pointed_out(attack):
    outcome = attack()
    path = outcome.directory / "trial.json"
    fast = path.read_text().replace('"gpus": []', '"gpus": [{"name": "NVIDIA A100-SXM4-40GB"}]')
    weights = outcome.summary["validity"]["weights_in_products"]
    assert weights == 13_754 - 16 - 16 - 32 - 32 - 64 - 10  # all but batch norm and biases
    path.write_text(fast.replace(f'"weights_in_products": {weights}', f'"weights_in_products": {10**12}'))
    (trial,) = audit([outcome.directory])
    assert any("its arithmetic alone takes" in finding.text for finding in trial.findings)


DIVERGE = """
    def training_step(self, batch):
        super().training_step(batch)
        with torch.no_grad():
            self.model.hidden.weight.fill_(float("nan"))
    """


def test_24_diverged_trial_ends_at_once(attack):
    """The accuracy of a model full of NaN is a number: the weights themselves are looked at."""
    outcome = attack(DIVERGE, max_steps=50)
    assert (outcome.summary["status"], outcome.summary["result"]["steps"]) == ("diverged", 1)
    assert outcome.exit_code == 4
    assert not outcome.summary["void"]
    unguarded = attack(DIVERGE, max_steps=5, disabled={"finite"})
    assert (unguarded.summary["status"], unguarded.summary["result"]["steps"]) == ("budget_exhausted", 5)


def test_25_resumed_stream_goes_on_where_it_was():
    drawn: list[int] = []

    def make_batch(draw):
        drawn.append(draw)
        return {"inputs": torch.tensor([draw])}

    first = TrainStream(make_batch, device=torch.device("cpu"))
    for _ in range(3):
        next(first)
    second = TrainStream(make_batch, device=torch.device("cpu"), position=first.position)
    next(second)
    assert drawn == [0, 1, 2, 3]


def test_every_split_is_counted():
    workload = build_workload("digits")
    assert evaluate.evaluated_splits(workload) == [Split.EVAL_TRAIN, Split.VALIDATION, Split.TEST]
