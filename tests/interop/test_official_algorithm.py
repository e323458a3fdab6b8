"""How a submission's functions are called, what they may return, what a checkpoint keeps."""

from __future__ import annotations

from collections import OrderedDict, deque, namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from algoperf_torch.errors import (
    CheckpointError,
    HyperparameterError,
    SubmissionError,
    TrainingComplete,
    UsageError,
)
from algoperf_torch.interop.official_algorithm import named_tuple
from algoperf_torch.interop.official_state import pack, unpack
from algoperf_torch.runner import checkpoint
from algoperf_torch.runner.record import read_rows
from algoperf_torch.runner.status import Status
from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.spec import Hyperparameters

CPU = torch.device("cpu")
KEYWORDS = ["workload", "current_param_container", "current_params_types", "model_state", "hyperparameters"]
KEYWORDS += ["batch", "loss_type", "optimizer_state", "eval_results", "global_step", "rng"]

RECORDING = """
real_init, real_update, real_selection = init_optimizer_state, update_params, data_selection

def init_optimizer_state(*args, **kwargs):
    RECORD.append(("init", args, kwargs))
    return real_init(*args, **kwargs)

def update_params(*args, **kwargs):
    RECORD.append(("update", args, dict(kwargs)))
    return real_update(*args, **kwargs)

def data_selection(*args, **kwargs):
    RECORD.append(("selection", args, kwargs))
    return real_selection(*args, **kwargs)

def prepare_for_eval(*args, **kwargs):
    RECORD.append(("prepare", args, dict(kwargs)))
    return kwargs["optimizer_state"], kwargs["current_param_container"], kwargs["model_state"]
"""


def record_of(trial):
    return trial.algorithm.scope._modules[trial.algorithm.scope.entry_name].RECORD


# ---------------------------------------------------------------- calls


def test_functions_are_called_as_the_original_does(write, make_trial):
    trial = make_trial(write(RECORDING), hparams=("learning_rate=0.1", "beta2=0.9"), max_steps=4)
    trial.run()
    record = record_of(trial)
    assert [name for name, *_ in record] == ["init", "selection", "update", "prepare"] + ["selection", "update"] * 3 + [
        "prepare"
    ]
    workload, container = trial.algorithm.workload, trial.engine.training
    (_, args, kwargs) = record[0]
    assert (args[0], args[1], args[2], kwargs) == (workload, container, None, {})
    assert (args[3]._fields, args[3].beta2) == (("learning_rate", "beta2"), 0.9)
    assert [type(part) for part in args[4]] == [int, int]
    selections = [args for name, args, _ in record if name == "selection"]
    assert [args[6] for args in selections] == [0, 1, 2, 3]
    assert all(args[1] is trial.stream and args[3] is container for args in selections)
    updates = [(args, kwargs) for name, args, kwargs in record if name == "update"]
    for step, (args, kwargs) in enumerate(updates):
        assert args == ()
        assert sorted(kwargs) == sorted(KEYWORDS)
        assert kwargs["global_step"] == step
        assert kwargs["optimizer_state"] is trial.algorithm.optimizer_state
        assert kwargs["eval_results"] is trial.context.eval_results
        assert kwargs["loss_type"].name == "SOFTMAX_CROSS_ENTROPY"
        assert kwargs["hyperparameters"] is selections[0][5]
        assert set(kwargs["batch"]) == {"inputs", "targets"}
    prepared = [kwargs for name, _, kwargs in record if name == "prepare"]
    assert [kwargs["global_step"] for kwargs in prepared] == [1, 4]
    assert sorted(prepared[0]) == sorted(set(KEYWORDS) - {"batch"})
    seeds = [tuple(args[7]) for args in selections] + [tuple(kwargs["rng"]) for _, kwargs in updates]
    assert len({*seeds, tuple(prepared[0]["rng"])}) == 9


def test_seeds_are_those_that_the_rules_give(write, make_trial):
    from algoperf_torch.runner.seeds import TrialSeeds, step_seeds
    from algoperf_torch.spec import Ruleset

    trial = make_trial(write(RECORDING), max_steps=2)
    trial.run()
    seeds = TrialSeeds.derive(trial.record.summary["seeds"]["trial"], Ruleset.EXTERNAL)
    given = {name: kwargs.get("rng", args and args[-1]) for name, args, kwargs in record_of(trial)}  # the last of each
    assert tuple(given["init"]) == seeds.optimizer
    assert np.asarray(given["update"]).tolist() == list(given["update"])
    expected = [tuple(given[name]) for name in ("selection", "update", "prepare")]
    assert expected == step_seeds(seeds.loop, 1, 4)[:3]


@pytest.mark.parametrize("has_parameter", [True, False])
def test_train_state_only_where_the_signature_has_it(write, make_trial, has_parameter):
    code = """
    real = update_params

    def update_params(workload, current_param_container, current_params_types, model_state, hyperparameters, batch,
                      loss_type, optimizer_state, eval_results, global_step, rng, {parameter}):
        RECORD.append(train_state if {has} else None)
        if {has}:
            RECORD.append(dict(train_state))
        return real(workload, current_param_container, current_params_types, model_state, hyperparameters, batch,
                    loss_type, optimizer_state, eval_results, global_step, rng)
    """
    parameter = "train_state=None" if has_parameter else "**more"
    trial = make_trial(write(code.format(parameter=parameter, has=has_parameter)), max_steps=3)
    trial.run()
    record = record_of(trial)
    if not has_parameter:
        assert record == [None] * 3
        return
    with pytest.raises(TypeError):
        record[0]["training_complete"] = True
    assert set(record[1]) == {
        *("validation_goal_reached", "test_goal_reached", "is_time_remaining", "last_eval_time", "training_complete"),
        *("accumulated_submission_time", "accumulated_eval_time", "accumulated_logging_time", "last_step_end_time"),
    }
    assert [state["accumulated_submission_time"] for state in record[1::2]] == pytest.approx([0.0, 0.1, 0.2])
    assert [state["last_eval_time"] for state in record[1::2]] == pytest.approx([0.0, 0.1, 0.1])


def test_hyperparameters_are_a_named_tuple_or_none():
    point = named_tuple(Hyperparameters(learning_rate=0.1, dropout_rate=None))
    assert point == (0.1, None)
    assert (hasattr(point, "epsilon"), getattr(point, "grad_clip", 5)) == (False, 5)
    with pytest.raises(AttributeError):
        _ = point.label_smoothing
    assert named_tuple(Hyperparameters()) is None
    with pytest.raises(HyperparameterError, match="'lambda' cannot be the field of a named tuple"):
        named_tuple(Hyperparameters(**{"lambda": 1}))


def test_self_tuning_submissions_get_no_hyperparameters(write, make_trial):
    trial = make_trial(write(RECORDING), ruleset="self", max_steps=1)
    assert record_of(trial)[0][1][3] is None


def test_evaluation_results_are_pairs_of_step_and_metrics(write, make_trial):
    trial = make_trial(write(RECORDING), max_steps=8)
    trial.run()
    results = trial.context.eval_results
    assert [step for step, _ in results] == [1, 4, 7, 8]
    assert 0 <= results[-1][1]["validation/accuracy"] <= 1


def test_training_complete_ends_the_trial_with_an_evaluation(write, make_trial):
    code = """
    real = update_params

    def update_params(**kwargs):
        if kwargs["global_step"] == 5:
            raise spec.TrainingCompleteError()
        return real(**kwargs)
    """
    trial = make_trial(write(code), max_steps=50)
    assert trial.run() is Status.BUDGET_EXHAUSTED
    assert trial.state.step == 6
    assert trial.context.finished
    assert trial.state.rows[-1]["global_step"] == 6


# ---------------------------------------------------------------- what is refused

BROKEN = {
    "return None": "update_params must return .optimizer_state, model, model_state., not None",
    "return {}, current_param_container": "not a tuple of 2",
    "return 3, current_param_container, None": "an optimizer_state that is a int, not a dictionary",
    "import copy; return optimizer_state, copy.deepcopy(current_param_container), None": "returned another model",
    "torch.zeros(1, device='cuda')": "raised .* .the submission needs a CUDA device; this trial runs on the CPU",
    "torch.distributed.barrier()": "the submission needs several ranks; this trial has one",
    "import jax": "not offered here; docs/existing-submissions.md",
    "return hyperparameters.nothing": "the hyperparameters of this trial are: learning_rate",
    "workload.eval_model(1)": "workload.eval_model is not offered: evaluations and their data belong to the harness",
    "workload._build_input_queue(1)": "workload._build_input_queue is not offered",
    "workload.nothing": "AlgoPerf's workload.nothing is not offered here",
    "workload.metrics_logger.append_scalar_metrics({'a': 'text'}, 0)": "Only numbers can be logged",
    "forward(workload, torch.nn.Linear(2, 2), batch)": "`params` must be the model that the submission was given",
    "1 / 0": "raised ZeroDivisionError in step 0: division by zero",
}


@pytest.mark.parametrize("code", BROKEN)
def test_what_a_submission_may_not_do_is_told(write, make_trial, code):
    head = "def update_params(" + ", ".join(KEYWORDS) + "):"
    trial = make_trial(write(f"{head}\n    {code}\n"), hparams=("learning_rate=0.1",))
    with pytest.raises(SubmissionError, match=BROKEN[code]):
        trial.run()


@pytest.mark.parametrize(
    ("code", "options", "error", "message"),
    [
        ("", {"micro_batch": 8}, UsageError, "--micro-batch: an AlgoPerf submission takes its batches whole"),
        ("", {"hparams": ("dropout_rate=1",)}, HyperparameterError, "Invalid dropout_rate=1"),
        ("", {"hparams": ("dropout_rate=0.1", "aux_dropout_rate=0.2")}, HyperparameterError, "aux_dropout_rate=0.2"),
        ("def init_optimizer_state(*_): return []", {}, SubmissionError, "returned a list, not a dictionary"),
        (
            "def init_optimizer_state(workload, params, state, hyperparameters, rng): return hyperparameters.lr",
            {},
            SubmissionError,
            "no hyperparameters were given: write --hparams or --search-space",
        ),
    ],
)
def test_what_cannot_be_built_is_told(write, make_trial, code, options, error, message):
    with pytest.raises(error, match=message):
        make_trial(write(code), **options)


def test_a_problem_without_a_trial_is_told(write):
    from algoperf_torch.optim.sanity import run_suite

    outcomes = run_suite(load_submission(str(write())).algorithm, {})
    assert all("an AlgoPerf submission needs a trial; --workload names one" in outcome.meaning for outcome in outcomes)


def test_out_of_memory_and_completion_keep_their_kind(write, make_trial):
    code = "def update_params(**kwargs): raise {error}\n"
    trial = make_trial(write(code.format(error="MemoryError('CUDA')"), "one"))
    with pytest.raises(MemoryError):
        trial.algorithm.training_step(None)
    trial = make_trial(write(code.format(error="spec.TrainingCompleteError('cuda')"), "two"))
    with pytest.raises(TrainingComplete):
        trial.algorithm.training_step(None)


# ---------------------------------------------------------------- logs


def test_logged_scalars_are_rows_of_measurements(write, make_trial):
    code = """
    real = update_params

    def update_params(**kwargs):
        metrics = {"loss": 0.5 + kwargs["global_step"], "norm": torch.tensor(2.0, requires_grad=True)}
        kwargs["workload"].metrics_logger.append_scalar_metrics(metrics, kwargs["global_step"])
        RECORD.append(metrics)
        return real(**kwargs)
    """
    trial = make_trial(write(code), max_steps=3)
    trial.run()
    assert record_of(trial)[2]["global_step"] == 2
    rows = [row for row in read_rows(trial.record.directory / "measurements.csv") if row.get("norm") not in (None, "")]
    assert [(float(row["global_step"]), float(row["loss"]), float(row["norm"])) for row in rows] == [
        (0, 0.5, 2),
        (1, 1.5, 2),
        (2, 2.5, 2),
    ]


def test_only_the_first_rank_has_a_logger(write, make_trial):
    from algoperf_torch.interop.official_workload import Workload

    context = make_trial(write()).context
    assert Workload(context, context.engine.official, None).metrics_logger is not None
    context.rank = 1
    assert Workload(context, context.engine.official, None).metrics_logger is None


# ---------------------------------------------------------------- state


class Counter:
    def __init__(self, count):
        self.count = count

    def state_dict(self):
        return {"count": self.count, "history": [1, 2]}

    def load_state_dict(self, state):
        assert state["history"] == [1, 2]
        self.count = state["count"]


def test_state_with_and_without_state_dict_comes_back(tmp_path):
    settings = namedtuple("Settings", "rate bounds")
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def build(scale):
        return {
            "settings": settings(0.1 * scale, (0, scale)),
            "count": scale,
            "flag": scale == 2,
            "nothing": None,
            "counter": Counter(scale),
            "several": [Counter(scale), {"inner": Counter(scale + 1)}],
            "buffers": OrderedDict(a=torch.full((2,), float(scale)), b=[torch.zeros(1)]),
            "array": np.arange(scale),
            "latest": deque([torch.full((1,), float(scale))], maxlen=4),
            "kinds": (torch.bfloat16, torch.Size([scale])),
            "function": build,
            "scheduler": schedule,
        }

    saved = checkpoint.save(tmp_path, 1, {"algorithm": pack(build(2), CPU)})
    stored = checkpoint.load(saved, identity={})["algorithm"]
    fresh = build(1)
    restored = unpack(checkpoint.decode(stored, pack(fresh, CPU), "algorithm"), fresh, CPU)
    assert restored["settings"] == settings(0.2, (0, 2))
    assert type(restored["settings"]).__name__ == "Settings"
    assert (restored["count"], restored["flag"], restored["nothing"]) == (2, True, None)
    assert restored["counter"] is fresh["counter"]
    assert (restored["counter"].count, restored["several"][0].count) == (2, 2)
    assert restored["several"][1]["inner"].count == 3
    assert restored["buffers"]["a"].tolist() == [2, 2]
    assert restored["array"].tolist() == [0, 1]
    assert (restored["latest"], restored["latest"].maxlen) == (deque([torch.tensor([2.0])]), 4)
    assert restored["kinds"] == (torch.bfloat16, torch.Size([2]))
    assert restored["function"] is build
    assert restored["scheduler"] is schedule


def test_host_tensors_stay_where_they_are():
    packed = pack({"kept": torch.ones(1), "moved": torch.ones(1, device="meta")}, torch.device("meta"))
    restored = unpack(packed, {}, torch.device("meta"))
    assert [restored[name].device.type for name in ("kept", "moved")] == ["cpu", "meta"]


class LowPrecision(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p, dtype=torch.bfloat16))
            momentum.lerp_(p.grad.bfloat16(), 0.1)


def test_optimizer_state_keeps_its_dtype(tmp_path):
    """torch casts what it loads to the dtype of the parameters."""

    def build():
        layer = nn.Linear(3, 1)
        return layer, {"optimizer": LowPrecision(layer.parameters())}

    layer, state = build()
    layer(torch.randn(3)).sum().backward()
    state["optimizer"].step()
    saved = checkpoint.save(tmp_path, 1, {"algorithm": pack(state, CPU)})
    other, fresh = build()
    stored = checkpoint.decode(checkpoint.load(saved, identity={})["algorithm"], pack(fresh, CPU), "algorithm")
    restored = unpack(stored, fresh, CPU)["optimizer"]
    for param, twin in zip(layer.parameters(), other.parameters(), strict=True):
        momentum = restored.state[twin]["momentum"]
        assert momentum.dtype is torch.bfloat16
        assert torch.equal(momentum, state["optimizer"].state[param]["momentum"])


def test_optimizer_state_in_host_memory_is_noted():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = LowPrecision([weight])
    optimizer.state[weight]["start"] = torch.zeros(1)
    packed = pack(optimizer, torch.device("meta"))
    assert packed["__on_host__"] == [(0, "start")]


def test_an_object_that_the_fresh_state_has_not_is_told():
    with pytest.raises(CheckpointError, match=r"optimizer_state\['late'\]: init_optimizer_state does not make it"):
        unpack(pack({"late": Counter(1)}, CPU), {}, CPU)
