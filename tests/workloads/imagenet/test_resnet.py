"""ResNet-50 and its variants: parameters, roles, what each option changes."""

from collections import Counter

import pytest
import torch

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.imagenet import SPECS
from algoperf_torch.workloads.imagenet.resnet import Bottleneck, ResNet
from algoperf_torch.workloads.layers import ACTIVATIONS
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles

NAMES = sorted(name for name in SPECS if name.startswith("imagenet_resnet"))
ROLES = {
    ParamRole.CONV_WEIGHT: 53,
    ParamRole.BATCH_NORM_SCALE: 53,
    ParamRole.BATCH_NORM_BIAS: 53,
    ParamRole.WEIGHT: 1,
    ParamRole.BIAS: 1,
}


def full_model(name):
    with torch.device("meta"):
        return build_workload(name).build_model()


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    model = full_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SPECS[name].num_parameters
    assert Counter(parameter.role for parameter in parameter_roles(model)) == ROLES
    assert Counter(reference_roles(n for n, _ in model.named_parameters()).values()) == ROLES
    assert [parameter.name for parameter in parameter_roles(model) if parameter.is_output] == [
        "head.weight",
        "head.bias",
    ]
    assert len(list(model.buffers())) == 53 * 4  # mean, variance, number of batches, and the update switch


@pytest.mark.parametrize(("name", "activation"), [("silu", "silu"), ("gelu", "gelu_tanh"), ("large_bn_init", "relu")])
def test_every_activation_is_the_variant_s(name, activation):
    model = full_model(f"imagenet_resnet_{name}")
    modules = [model, *(module for module in model.modules() if isinstance(module, Bottleneck))]
    assert len(modules) == 17
    assert all(module.activation is ACTIVATIONS[activation] for module in modules)


@pytest.mark.parametrize(("name", "scale"), [("imagenet_resnet", 0.0), ("imagenet_resnet_large_bn_init", 8.0)])
def test_initial_scales(name, scale):
    model = build_workload(name, model_scale="test").build_model()
    for block in model.blocks:
        assert torch.all(block.bn3.weight == scale)
        assert torch.all(block.bn2.weight == 1)
        assert not block.project or torch.all(block.shortcut_bn.weight == 1)
    assert torch.all(model.head.bias == 0)


def test_strides_sit_on_the_middle_convolution():
    model = full_model("imagenet_resnet")
    strides = [(block.conv1.stride[0], block.conv2.stride[0], block.conv3.stride[0]) for block in model.blocks]
    assert strides == [(1, 2 if number in (3, 7, 13) else 1, 1) for number in range(16)]
    assert [block.project for block in model.blocks] == [number in (0, 3, 7, 13) for number in range(16)]


def test_a_residual_block_without_its_branch_is_the_identity():
    model = ResNet(stage_sizes=(2,), width=4, num_classes=3).eval()
    x = torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(model.blocks[1](x), x)
