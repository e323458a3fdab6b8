"""Roles come from modules; the reference's come from its names."""

from collections import Counter

import pytest
import torch
from torch import nn

from algoperf_torch.spec import Parameter, ParamRole
from algoperf_torch.workloads.layers import BatchNorm
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import mark_output, mark_roles, parameter_roles, reference_roles


def roles(model):
    return {parameter.name: parameter.role for parameter in parameter_roles(model)}


def outputs(model):
    return [parameter.name for parameter in parameter_roles(model) if parameter.is_output]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 3), {"weight": ParamRole.WEIGHT, "bias": ParamRole.BIAS}),
        (nn.Conv2d(2, 3, 1), {"weight": ParamRole.CONV_WEIGHT, "bias": ParamRole.BIAS}),
        (nn.ConvTranspose1d(2, 3, 1), {"weight": ParamRole.CONV_WEIGHT, "bias": ParamRole.BIAS}),
        (BatchNorm(2), {"weight": ParamRole.BATCH_NORM_SCALE, "bias": ParamRole.BATCH_NORM_BIAS}),
        (nn.BatchNorm1d(2), {"weight": ParamRole.BATCH_NORM_SCALE, "bias": ParamRole.BATCH_NORM_BIAS}),
        (nn.LayerNorm(2), {"weight": ParamRole.LAYER_NORM_SCALE, "bias": ParamRole.LAYER_NORM_BIAS}),
        (nn.GroupNorm(1, 2), {"weight": ParamRole.LAYER_NORM_SCALE, "bias": ParamRole.LAYER_NORM_BIAS}),
        (nn.InstanceNorm2d(2, affine=True), {"weight": ParamRole.LAYER_NORM_SCALE, "bias": ParamRole.LAYER_NORM_BIAS}),
        (nn.RMSNorm(2), {"weight": ParamRole.LAYER_NORM_SCALE}),
        (nn.Embedding(2, 3), {"weight": ParamRole.EMBEDDING}),
        (nn.EmbeddingBag(2, 3), {"weight": ParamRole.EMBEDDING}),
        (
            nn.LSTM(2, 3),
            {
                "weight_ih_l0": ParamRole.WEIGHT,
                "weight_hh_l0": ParamRole.WEIGHT,
                "bias_ih_l0": ParamRole.BIAS,
                "bias_hh_l0": ParamRole.BIAS,
            },
        ),
        (
            nn.MultiheadAttention(4, 2),
            {
                "in_proj_weight": ParamRole.ATTENTION_QKV,
                "in_proj_bias": ParamRole.ATTENTION_BIAS,
                "out_proj.weight": ParamRole.ATTENTION_OUT,
                "out_proj.bias": ParamRole.ATTENTION_BIAS,
            },
        ),
        (
            nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
            {
                "q_proj_weight": ParamRole.ATTENTION_Q,
                "k_proj_weight": ParamRole.ATTENTION_K,
                "v_proj_weight": ParamRole.ATTENTION_V,
                "in_proj_bias": ParamRole.ATTENTION_BIAS,
                "bias_k": ParamRole.ATTENTION_BIAS,
                "bias_v": ParamRole.ATTENTION_BIAS,
                "out_proj.weight": ParamRole.ATTENTION_OUT,
                "out_proj.bias": ParamRole.ATTENTION_BIAS,
            },
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_modules_of_torch(module, expected):
    assert roles(module) == expected
    assert roles(nn.Sequential(module)) == {f"0.{name}": role for name, role in expected.items()}


def test_a_misleading_name_has_no_effect():
    model = nn.Module()
    model.conv_bn_embedding_attention = nn.Linear(2, 2)
    assert set(roles(model).values()) == {ParamRole.WEIGHT, ParamRole.BIAS}


def test_marks_say_what_a_class_cannot():
    query = mark_roles(nn.Linear(2, 2), weight=ParamRole.ATTENTION_Q, bias=ParamRole.ATTENTION_BIAS)
    assert roles(query) == {"weight": ParamRole.ATTENTION_Q, "bias": ParamRole.ATTENTION_BIAS}
    with pytest.raises(ValueError, match="Linear has no parameter scale"):
        mark_roles(nn.Linear(2, 2), scale=ParamRole.LAYER_NORM_SCALE)


def test_parameters_of_a_module_of_ones_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(3))

    assert roles(Scaled()) == {"gain": ParamRole.WEIGHT, "bias": ParamRole.BIAS}


def test_tied_tensor_is_an_embedding_flagged_as_output():
    for embedding_first in (True, False):
        embedding, head = nn.Embedding(5, 3), mark_output(nn.Linear(3, 5))
        head.weight = embedding.weight
        model = nn.Sequential(embedding, head) if embedding_first else nn.Sequential(head, embedding)
        (tied,) = [parameter for parameter in parameter_roles(model) if parameter.role is ParamRole.EMBEDDING]
        assert tied.is_output
        assert len(parameter_roles(model)) == len(list(model.parameters())) == 2


def test_embedding_used_as_the_output_matrix_can_be_marked():
    model = nn.Sequential(mark_output(nn.Embedding(5, 3)), nn.Linear(3, 3))
    assert parameter_roles(model)[0] == Parameter(name="0.weight", role=ParamRole.EMBEDDING, is_output=True)
    assert outputs(model) == ["0.weight"]


def test_order_is_that_of_the_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(BatchNorm(2), nn.Embedding(2, 2)))
    assert [parameter.name for parameter in parameter_roles(model)] == [name for name, _ in model.named_parameters()]


def test_marks_survive_copying():
    import copy

    model = copy.deepcopy(nn.Sequential(mark_output(nn.Linear(2, 2))))
    assert outputs(model) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("workload", "counts", "head"),
    [
        (
            "cifar",
            {"conv_weight": 20, "batch_norm_scale": 20, "batch_norm_bias": 20, "weight": 1, "bias": 1},
            ["head.weight", "head.bias"],
        ),
        ("mnist", {"weight": 2, "bias": 2}, ["head.weight", "head.bias"]),
        (
            "digits",
            {"conv_weight": 2, "batch_norm_scale": 2, "batch_norm_bias": 2, "weight": 2, "bias": 2},
            ["head.weight", "head.bias"],
        ),
    ],
)
def test_roles_of_the_development_workloads(workload, counts, head):
    """Here the reference's names tell the same as the modules; its table of counts is matched by both."""
    model = build_workload(workload).build_model()
    found = roles(model)
    assert Counter(role.value for role in found.values()) == counts
    assert reference_roles(found) == found
    assert outputs(model) == head


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("layer1.0.bn2.weight", ParamRole.BATCH_NORM_SCALE),
        ("bn1.bias", ParamRole.BATCH_NORM_BIAS),
        ("conv_bn.weight", ParamRole.BATCH_NORM_SCALE),
        ("encoder.norm1.weight", ParamRole.LAYER_NORM_SCALE),
        ("ln.scale", ParamRole.LAYER_NORM_SCALE),
        ("ln.bias", ParamRole.LAYER_NORM_BIAS),
        ("attention_norm.weight", ParamRole.LAYER_NORM_SCALE),
        ("conv1.weight", ParamRole.CONV_WEIGHT),
        ("conv_layers.1.weight", ParamRole.CONV_WEIGHT),  # a normalisation inside a container called conv
        ("conv1.bias", ParamRole.BIAS),
        ("shared_embedding.weight", ParamRole.EMBEDDING),
        ("node_embedder.bias", ParamRole.BIAS),
        ("embedding_chunk_0", ParamRole.WEIGHT),
        ("self_attn.in_proj_weight", ParamRole.ATTENTION_QKV),
        ("attn.kv_proj.weight", ParamRole.ATTENTION_KV),
        ("attn.k_proj.weight", ParamRole.ATTENTION_K),
        ("attention.key.weight", ParamRole.ATTENTION_K),
        ("attention.query.weight", ParamRole.ATTENTION_Q),
        ("attention.v_proj.weight", ParamRole.ATTENTION_V),
        ("attention.out.weight", ParamRole.ATTENTION_OUT),
        ("attention.out.bias", ParamRole.ATTENTION_BIAS),
        ("attention.scale", ParamRole.WEIGHT),
        ("linear.weight", ParamRole.WEIGHT),
        ("linear.bias", ParamRole.BIAS),
    ],
)
def test_reference_roles(name, role):
    assert reference_roles([name]) == {name: role}
