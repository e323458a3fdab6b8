"""Conformer, Deep Speech and their variants: parameters, roles, initialisation, what each option changes."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from algoperf_torch.workloads.layers import ACTIVATIONS, Dropout
from algoperf_torch.workloads.librispeech import SPECS
from algoperf_torch.workloads.librispeech.conformer import Conformer, SelfAttention, positional_signal
from algoperf_torch.workloads.librispeech.deepspeech import DeepSpeech
from algoperf_torch.workloads.librispeech.layers import LayerNorm, MaskedBatchNorm
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles

CONFORMER_ROLES = {
    "bias": 32,
    "weight": 22,
    "layer_norm_scale": 21,
    "layer_norm_bias": 21,
    "conv_weight": 18,
    "attention_bias": 8,
    "attention_qkv": 4,
    "attention_out": 4,
    "batch_norm_scale": 4,
    "batch_norm_bias": 4,
}
DEEPSPEECH_ROLES = {
    "bias": 31,
    "weight": 29,
    "batch_norm_scale": 9,
    "batch_norm_bias": 9,
    "conv_weight": 2,
    "layer_norm_scale": 1,
    "layer_norm_bias": 1,
}
ROLES = {name: CONFORMER_ROLES if "conformer" in name else DEEPSPEECH_ROLES for name in SPECS} | {
    "librispeech_conformer_layernorm": CONFORMER_ROLES | {"layer_norm_scale": 17, "layer_norm_bias": 17},
    "librispeech_deepspeech_norm_and_spec_aug": {
        "bias": 31, "weight": 29, "layer_norm_scale": 9, "layer_norm_bias": 9, "conv_weight": 2,
    },
}  # fmt: skip


def full_model(name, device="meta"):
    with torch.device(device):
        return build_workload(name).build_model()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_parameters(name):
    model = full_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SPECS[name].num_parameters
    assert Counter(parameter.role.value for parameter in parameter_roles(model)) == Counter(ROLES[name])
    seen = reference_roles(name for name, _ in model.named_parameters())
    assert Counter(role.value for role in seen.values()) == Counter(ROLES[name])
    outputs = [parameter.name for parameter in parameter_roles(model) if parameter.is_output]
    assert outputs == ["output.weight", "output.bias"]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_dropout_sites(name):
    sites = [module for module in full_model(name).modules() if isinstance(module, Dropout)]
    assert len(sites) == (1 + 4 * 4 if "conformer" in name else 1 + 3)


@pytest.fixture(scope="module", params=["librispeech_conformer", "librispeech_deepspeech"])
def initialised(request):
    torch.manual_seed(0)
    return full_model(request.param, "cpu")


def test_initialisation(initialised):
    """Xavier-uniform weights, zero biases and norms; the LSTM is tested on its own."""
    bounds = {
        "subsampling.conv1.weight": 0.03605,
        "subsampling.conv2.weight": 0.02552,
        "subsampling.linear.weight": 0.02362,
    }
    bounds["output.weight"] = 0.0625
    if isinstance(initialised, Conformer):
        bounds |= {
            "blocks.0.feed_forward1.layer1.weight": 0.04841,
            "blocks.3.feed_forward2.layer2.weight": 0.04841,
            "blocks.0.attention.in_proj.weight": 0.05413,
            "blocks.1.attention.out.weight": 0.07655,
            "blocks.2.convolution.gate.weight": 0.07655,
            "blocks.2.convolution.depthwise.weight": 0.04837,
        }
    else:
        bounds["feed_forward.1.linear.weight"] = 0.07655
    for name, parameter in initialised.named_parameters():
        value = parameter.detach()
        if name in bounds:
            assert value.abs().max().item() == pytest.approx(bounds[name], rel=5e-3), name
            assert value.std().item() == pytest.approx(bounds[name] / math.sqrt(3), rel=0.03), name
            assert abs(value.mean().item()) < 6 * bounds[name] / value.numel() ** 0.5, name
        elif "lstm" not in name and value.dim() == 1:
            assert not value.any(), name


def test_front_end_lengths(initialised):
    """320,000 samples make 1,998 frames, 999, then 500; a valid length is rounded up in the same way."""
    small = type(initialised)(
        **({"dim": 8, "depth": 1, "num_heads": 2} if isinstance(initialised, Conformer) else {"dim": 8})
    )
    paddings = (torch.arange(320_000) >= torch.tensor([[320_000], [161]])).float()
    with torch.no_grad():
        logits, out_paddings = small.eval()(torch.zeros(2, 320_000), paddings)
    assert logits.shape == (2, 500, 1024)
    assert (1 - out_paddings).sum(dim=1).tolist() == [500, 1]


# ------------------------------------------------------------------------------------------------------------ variants


def functions(model):
    return Counter(
        next(name for name, function in ACTIVATIONS.items() if function is module.activation)
        for module in model.modules()
        if hasattr(module, "activation")
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("librispeech_conformer", {"silu": 12, "relu": 1}),
        ("librispeech_conformer_gelu", {"gelu_tanh": 8, "gelu": 4, "relu": 1}),
        ("librispeech_deepspeech", {"relu": 4}),
        ("librispeech_deepspeech_tanh", {"tanh": 4}),
    ],
)
def test_activations(name, expected):
    assert functions(full_model(name)) == Counter(expected)


def test_gelu_is_exact_in_the_convolution_module_only():
    block = full_model("librispeech_conformer_gelu").blocks[0]
    assert block.convolution.activation is ACTIVATIONS["gelu"]
    assert block.feed_forward1.activation is block.feed_forward2.activation is ACTIVATIONS["gelu_tanh"]


def test_attention_temperature_scales_the_output_before_its_projection():
    torch.manual_seed(0)
    plain, warm = (SelfAttention(8, 2, temperature, 0.0) for temperature in (1.0, 1.6))
    warm.load_state_dict(plain.state_dict())
    x, valid = torch.randn(2, 5, 8), torch.ones(2, 5, 1)
    torch.testing.assert_close(warm(x, valid), 1.6 * plain(x, valid))  # the bias of the projection is zero
    model = full_model("librispeech_conformer_attention_temperature")
    assert {block.attention.temperature for block in model.blocks} == {1.6}


def test_initial_query_scale_is_one():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, 1.0, 0.0)
    x, valid = torch.randn(2, 5, 8), torch.ones(2, 5, 1)
    query, key, value = (
        part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.in_proj(attention.norm(x)).chunk(3, dim=-1)
    )
    expected = (torch.softmax(query @ key.transpose(-2, -1) / 2, dim=-1) @ value).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(attention(x, valid), attention.out(expected))


def test_padded_keys_are_not_attended_to():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, 1.0, 0.0)
    x = torch.randn(1, 5, 8)
    valid = torch.tensor([1.0, 1, 1, 0, 0])[None, :, None]
    changed = torch.where(valid > 0, x, 9.0)
    torch.testing.assert_close(attention(x, valid)[:, :3], attention(changed, valid)[:, :3])
    torch.testing.assert_close(attention(x, valid)[:, :3], attention(x[:, :3], valid[:, :3]))


def test_positional_signal():
    signal = positional_signal(7, 6)
    assert signal.shape == (7, 6)
    for position in range(7):
        for i in range(3):
            frequency = 10_000 ** (-i / 2)
            assert signal[position, i].item() == pytest.approx(math.sin(position * frequency), abs=1e-5)
            assert signal[position, 3 + i].item() == pytest.approx(math.cos(position * frequency), abs=1e-5)


def test_layer_norm_variant_of_the_conformer_ends_blocks_without_norm():
    model = full_model("librispeech_conformer_layernorm")
    assert all(isinstance(block.norm, nn.Identity) for block in model.blocks)
    assert isinstance(model.norm, LayerNorm)


def test_norm_and_spec_aug_variant():
    model = full_model("librispeech_deepspeech_norm_and_spec_aug")
    assert not any(isinstance(module, MaskedBatchNorm) for module in model.modules())
    assert isinstance(model.norm, nn.Identity)
    assert model.spec_augment.num_masks == (15, 15, 4, 4)
    assert full_model("librispeech_deepspeech").spec_augment.num_masks == (10, 10, 2, 2)
    assert SPECS["librispeech_deepspeech_norm_and_spec_aug"].eval_batch_size == 128


def test_batch_norm_is_synchronised_in_deep_speech_only():
    for name, expected in (("librispeech_deepspeech", True), ("librispeech_conformer", False)):
        norms = [module for module in full_model(name).modules() if isinstance(module, MaskedBatchNorm)]
        assert {module.synchronised for module in norms} == {expected}


def test_without_residuals_a_layer_replaces_its_input():
    torch.manual_seed(0)
    options = {"dim": 8, "num_recurrent": 1, "num_feed_forward": 0, "vocabulary_size": 5, "dropout": 0.0}
    plain, replaced = DeepSpeech(**options), DeepSpeech(residual=False, **options)
    replaced.load_state_dict(plain.state_dict())
    inner = {}
    for name, model in (("plain", plain), ("replaced", replaced)):
        model.eval()
        model.dropout.register_forward_hook(lambda *a, n=name: inner.__setitem__(f"{n} in", a[2]))
        model.recurrent[0].register_forward_hook(lambda *a, n=name: inner.__setitem__(f"{n} layer", a[2]))
        model.norm.register_forward_pre_hook(lambda *a, n=name: inner.__setitem__(f"{n} out", a[1][0]))
        model(torch.randn(1, 8_000), torch.zeros(1, 8_000))
    torch.testing.assert_close(inner["plain out"], inner["plain in"] + inner["plain layer"])
    torch.testing.assert_close(inner["replaced out"], inner["replaced layer"])
