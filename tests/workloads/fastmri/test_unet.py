"""U-Net and its variants: parameters, roles, odd sizes, what each option changes."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from algoperf_torch.kernels.ssim import ssim
from algoperf_torch.workloads.fastmri import SPECS
from algoperf_torch.workloads.fastmri.unet import InstanceNorm, UNet
from algoperf_torch.workloads.layers import ACTIVATIONS, Dropout, set_dropout
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles

REFERENCE_ROLES = {
    "fastmri": {"conv_weight": 23, "bias": 1},
    "fastmri_tanh": {"conv_weight": 23, "bias": 1},
    "fastmri_model_size": {"conv_weight": 18, "bias": 1},
    "fastmri_layernorm": {"conv_weight": 41, "bias": 19},
}


def full_model(name):
    with torch.device("meta"):
        return build_workload(name).build_model()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_parameters(name):
    model = full_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SPECS[name].num_parameters
    expected = Counter(REFERENCE_ROLES[name])
    assert Counter(role.value for role in reference_roles(n for n, _ in model.named_parameters()).values()) == expected
    ours = parameter_roles(model)
    if name == "fastmri_layernorm":
        expected = Counter({"conv_weight": 23, "bias": 1, "layer_norm_scale": 18, "layer_norm_bias": 18})
    assert Counter(parameter.role.value for parameter in ours) == expected
    outputs = [parameter.name for parameter in ours if parameter.is_output]
    assert outputs == ["output_conv.weight", "output_conv.bias"]


def test_golden_odd_size(fill, request):
    path = request.config.getoption("--golden") / "fastmri.npz"
    if not path.exists():
        pytest.skip("no vectors of fastmri in this folder")
    with np.load(path) as arrays:
        recipe, stored = str(arrays["odd_size_input_recipe"]), arrays["odd_size_eval_output"]
    inputs = eval(recipe, {"__builtins__": {}}, {"RandomState": np.random.RandomState, "float32": "float32"})
    model = fill(UNet()).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(inputs))
    np.testing.assert_allclose(found, stored, atol=1e-5 * np.abs(stored).max())


def test_golden_ssim_of_the_output(fill, request):
    """The metric on the model's own output, at full size."""
    path = request.config.getoption("--golden") / "fastmri.npz"
    if not path.exists():
        pytest.skip("no vectors of fastmri in this folder")
    with np.load(path) as arrays:
        golden = dict(arrays)
    names = {"RandomState": np.random.RandomState, "float32": "float32"}
    inputs, targets = (
        torch.from_numpy(eval(str(golden[f"{name}_recipe"]), {"__builtins__": {}}, names))
        for name in ("input", "target")
    )
    with torch.no_grad():
        output = fill(UNet()).eval()(inputs)
    numbers = (torch.from_numpy(golden[f"ssim_{name}"]) for name in ("mean", "std", "volume_max"))
    np.testing.assert_allclose(ssim(output, targets, *numbers), golden["ssim"], atol=1e-5)


@pytest.mark.parametrize(("name", "activation"), [("fastmri", "leaky_relu"), ("fastmri_tanh", "tanh")])
def test_every_activation_is_the_variant_s(name, activation):
    functions = [module.function for module in full_model(name).modules() if hasattr(module, "function")]
    assert len(functions) == 18 + 4
    assert set(functions) == {ACTIVATIONS[activation]}


def test_layer_norm_is_in_convolution_blocks_only():
    model = full_model("fastmri_layernorm")
    assert sum(isinstance(module, nn.GroupNorm) for module in model.modules()) == 18
    assert sum(isinstance(module, InstanceNorm) for module in model.modules()) == 4
    assert all(module.eps == 1e-6 for module in model.modules() if isinstance(module, nn.GroupNorm))


def test_dropout_takes_whole_channels():
    torch.manual_seed(0)
    model = UNet(channels=4, num_levels=1)
    assert sum(isinstance(module, Dropout) for module in model.modules()) == 2 * 3
    set_dropout(model, 0.5)
    dropped = model.down_convs[0](torch.randn(8, 1, 16, 16))
    zero = (dropped == 0).float().mean(dim=(2, 3))
    assert set(zero.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 19), (21, 23)])
def test_output_has_the_input_s_size(size):
    assert UNet(channels=2, num_levels=2)(torch.randn(1, *size)).shape == (1, *size)
