"""The members of `workload` that a submission may use."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional

from algoperf_torch.errors import SubmissionError
from algoperf_torch.interop.official_spec import ForwardPassMode, ParameterType
from algoperf_torch.interop.official_workload import Workload
from algoperf_torch.workloads.layers import dropout_rates
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import reference_roles

TRAIN, EVAL = ForwardPassMode.TRAIN, ForwardPassMode.EVAL


@pytest.fixture
def trial(write, make_trial):
    return make_trial(write())


def forward(trial, mode=TRAIN, **options):
    batch = next(trial.stream)
    outputs, state = trial.algorithm.workload.model_fn(
        params=trial.engine.training,
        augmented_and_preprocessed_input_batch=batch,
        model_state=None,
        mode=mode,
        rng=[0, 0],
        **{"update_batch_norm": True, **options},
    )
    assert state is None
    return outputs, batch


# ---------------------------------------------------------------- passes


def test_training_mode_is_set_by_the_pass(trial):
    """Some submissions never call `train()`, and evaluations end in evaluation mode elsewhere."""
    trial.engine.model.eval()
    forward(trial)
    assert all(module.training for module in trial.engine.model.modules())
    trial.engine.model.bn1.eval()
    forward(trial)
    assert trial.engine.model.bn1.training


def test_gradients_are_the_callers_choice(trial):
    assert forward(trial)[0].requires_grad
    with torch.no_grad():
        assert not forward(trial)[0].requires_grad


def test_evaluation_mode_changes_nothing(trial):
    before = {name: value.clone() for name, value in trial.engine.model.state_dict().items()}
    outputs, batch = forward(trial, EVAL)
    assert not outputs.requires_grad
    torch.testing.assert_close(outputs, trial.engine.model.eval()(batch["inputs"]))
    torch.testing.assert_close(trial.engine.model.state_dict(), before, rtol=0, atol=0)


def test_batch_norm_is_frozen_and_released(trial):
    statistics = trial.engine.model.bn1.running_mean
    seen = []
    for update in (True, False, False, True):
        before = statistics.clone()
        forward(trial, update_batch_norm=update)
        seen.append(not torch.equal(before, statistics))
    assert seen == [True, False, False, True]


def test_frozen_batch_norm_still_normalises_by_the_batch(trial):
    batch = next(trial.stream)
    arguments = {"params": trial.engine.training, "augmented_and_preprocessed_input_batch": batch, "model_state": None}
    pair = [
        trial.algorithm.workload.model_fn(
            **arguments, mode=TRAIN, rng=[0, 0], update_batch_norm=update, dropout_rate=0.0
        )[0]
        for update in (True, False)
    ]
    torch.testing.assert_close(*pair)


# ---------------------------------------------------------------- dropout


def test_dropout_is_given_with_a_pass_or_the_workloads_own(trial):
    default = dropout_rates(trial.engine.model)
    for options, expected in (
        ({"dropout_rate": 0.5}, [0.5]),
        ({}, default),
        ({"dropout_rate": 0.0}, [0.0]),
        ({"dropout_rate": None}, default),
    ):
        forward(trial, **options)
        assert dropout_rates(trial.engine.model) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("code", "rate"),
    [("", 0.3), ("def other(workload): workload.model_fn(dropout_rate=0.2)\n", 0.1)],
    ids=["fixed when the model is built", "a matter of the pass"],
)
def test_dropout_of_the_hyperparameters(write, make_trial, code, rate):
    """A submission that never passes a rate was written when the harness fixed it; else the field is the submission's."""
    trial = make_trial(write(code), hparams=("dropout_rate=0.3",))
    forward(trial)
    assert dropout_rates(trial.engine.model) == pytest.approx([rate])


def test_dropout_is_set_again_after_a_restore(trial):
    forward(trial, dropout_rate=0.5)
    trial.algorithm.load_state_dict(trial.algorithm.state_dict())
    trial.context.set_dropout(0.2)  # as a checkpoint does
    forward(trial, dropout_rate=0.5)
    assert dropout_rates(trial.engine.model) == [0.5]


# ---------------------------------------------------------------- loss


def test_loss_is_a_dictionary_of_tensors(trial):
    outputs, batch = forward(trial)
    losses = trial.algorithm.workload.loss_fn(label_batch=batch["targets"], logits_batch=outputs)
    expected = functional.cross_entropy(outputs, batch["targets"], reduction="none")
    torch.testing.assert_close(losses["per_example"], expected)
    torch.testing.assert_close(losses["summed"], expected.sum())
    assert isinstance(losses["n_valid_examples"], torch.Tensor)
    assert losses["n_valid_examples"].device == outputs.device
    assert float(losses["n_valid_examples"]) == len(outputs)
    assert losses["summed"].requires_grad


def test_loss_takes_any_labels_mask_and_smoothing(trial):
    outputs, batch = forward(trial)
    mask = torch.ones(len(outputs))
    mask[::2] = 0
    labels = batch["targets"].flip(0)
    losses = trial.algorithm.workload.loss_fn(
        label_batch=labels, logits_batch=outputs, mask_batch=mask, label_smoothing=0.1
    )
    expected = functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.1) * mask
    torch.testing.assert_close(losses["summed"], expected.sum())
    assert float(losses["n_valid_examples"]) == mask.sum()


def test_the_batch_is_let_go_after_a_step(trial):
    trial.algorithm.training_step(trial.algorithm.select_batch(trial.stream))
    assert trial.algorithm.workload._batch == {}


# ---------------------------------------------------------------- facts


def test_facts(trial):
    workload, spec = trial.algorithm.workload, build_workload("digits").spec
    assert (workload.step_hint, type(workload.step_hint)) == (12, int)  # the trial's --max-steps is none of the version
    assert (workload.max_allowed_runtime_sec, type(workload.max_allowed_runtime_sec)) == (30, int)
    assert workload.eval_period_time_sec == 0.25
    assert workload.target_metric_name == "accuracy"
    assert workload.num_train_examples == spec.num_train
    assert workload.num_eval_train_examples == spec.num_eval_train
    assert workload.num_validation_examples == spec.num_validation
    assert workload.num_test_examples == spec.num_test
    assert workload.eval_batch_size == 300
    assert (workload.validation_target_value, workload.test_target_value) == (0.9783, 0.9717)
    assert workload.has_reached_validation_target({"validation/accuracy": 0.98})
    assert not workload.has_reached_validation_target({"validation/accuracy": 0.9783})
    assert not workload.has_reached_test_target({"test/accuracy": 0.9})
    assert workload.loss_type.name == "SOFTMAX_CROSS_ENTROPY"


def test_the_budget_is_that_of_the_external_ruleset(write, make_trial):
    assert make_trial(write(), ruleset="self").algorithm.workload.max_allowed_runtime_sec == 30
    trial = make_trial(write(name="other"), budget="500steps")
    assert trial.algorithm.workload.max_allowed_runtime_sec == 30


def test_parameters_are_described(trial):
    workload, model = trial.algorithm.workload, trial.engine.model
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert {name: shape.shape_tuple for name, shape in workload.param_shapes.items()} == shapes
    assert workload.model_params_types == reference_roles(shapes)
    assert workload.model_params_types["bn1.weight"] is ParameterType.BATCH_NORM_SCALE
    assert [name for name in shapes if workload.is_output_params(name)] == ["head.weight", "head.bias"]


def test_a_fresh_model_is_another_one(trial):
    fresh, state = trial.algorithm.workload.init_model_fn([3, 4])
    assert state is None
    assert fresh is not trial.engine.model
    assert not torch.equal(fresh.head.weight, trial.engine.model.head.weight)


def test_output_activation(trial):
    logits = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(trial.algorithm.workload.output_activation_fn(logits, "pytorch"), logits.softmax(-1))
    with pytest.raises(SubmissionError, match="Write 'pytorch'"):
        trial.algorithm.workload.output_activation_fn(logits, "jax")


def test_members_that_are_not_offered(trial):
    assert not hasattr(trial.algorithm.workload, "train_mean")
    assert not hasattr(trial.algorithm.workload, "name")


# ---------------------------------------------------------------- names

MATRICES = {  # (for a matrix optimizer, for the other) when a name with "embedding", or a vector, goes to the other
    "criteo1tb": (8, 12),
    "fastmri": (23, 1),
    "librispeech_conformer": (44, 94),
    "librispeech_deepspeech": (31, 51),
    "ogbg": (18, 48),
    "wmt": (66, 89),
}


@pytest.mark.parametrize("name", MATRICES)
def test_choices_by_name_fall_as_in_the_reference(name):
    with torch.device("meta"):
        model = build_workload(name).build_model()
    others = [
        name
        for name, value in model.named_parameters()
        if value.dim() < 2 or "embedding" in name or "embed_tokens" in name
    ]
    assert (len(list(model.parameters())) - len(others), len(others)) == MATRICES[name]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_prefixes_of_wrappers_do_not_matter(prefix):
    names = ["embedding.weight", "bn1.weight", "attention.out_proj.weight"]
    plain = reference_roles(names)
    assert list(reference_roles(prefix + name for name in names).values()) == list(plain.values())


def test_a_wrapped_container_has_its_own_names(trial):
    """What a compiled model, or a data-parallel one, calls its parameters."""
    facts = trial.context.engine.official
    container = torch.compile(trial.engine.model, backend="eager")
    names = [name for name, _ in container.named_parameters()]
    wrapped = dataclasses.replace(facts, container=container, parameter_types=reference_roles(names))
    workload = Workload(trial.context, wrapped, None)
    assert names[0] == "_orig_mod.conv1.weight"
    assert list(workload.param_shapes) == list(workload.model_params_types) == names
    assert [name for name in names if workload.is_output_params(name)] == [
        "_orig_mod.head.weight",
        "_orig_mod.head.bias",
    ]
    assert workload.is_output_params("_orig_mod.head.bias")
