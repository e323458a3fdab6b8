"""ViT-S/16 and its variants: parameters, roles, positions, dropout sites, what each option changes."""

from collections import Counter

import pytest
import torch
from torch.nn import functional

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.imagenet import SPECS
from algoperf_torch.workloads.imagenet.vit import MLP, AttentionPool, Block, ViT, attend, position_table
from algoperf_torch.workloads.layers import Dropout, set_dropout
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles

NAMES = sorted(name for name in SPECS if name.startswith("imagenet_vit"))
ATTENTION = {f"attention_{part}": 12 for part in ("q", "k", "v", "out")} | {"attention_bias": 48}
REFERENCE_ROLES = {
    "imagenet_vit": {"weight": 26, "bias": 27, "layer_norm_scale": 25, "layer_norm_bias": 25},
    "imagenet_vit_glu": {"weight": 38, "bias": 39, "layer_norm_scale": 25, "layer_norm_bias": 25},
    "imagenet_vit_post_ln": {"weight": 26, "bias": 27, "layer_norm_scale": 24, "layer_norm_bias": 24},
    "imagenet_vit_map": {"weight": 32, "bias": 32, "layer_norm_scale": 26, "layer_norm_bias": 26},
}


def full_model(name):
    with torch.device("meta"):
        return build_workload(name).build_model()


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    model = full_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SPECS[name].num_parameters
    expected = Counter(REFERENCE_ROLES[name] | ATTENTION | {"conv_weight": 1})
    assert Counter(role.value for role in reference_roles(n for n, _ in model.named_parameters()).values()) == expected
    ours = parameter_roles(model)
    if name == "imagenet_vit_map":  # the pooling attention is one
        expected -= Counter({"weight": 3, "bias": 3})
        expected += Counter({"attention_q": 1, "attention_kv": 1, "attention_out": 1, "attention_bias": 3})
    assert Counter(parameter.role.value for parameter in ours) == expected
    assert [parameter.name for parameter in ours if parameter.is_output] == ["head.weight", "head.bias"]


def test_positions(golden_metrics):
    golden = golden_metrics("vision")
    table = position_table(14, 14, 384)
    torch.testing.assert_close(table[golden["posemb_row_index"]], torch.from_numpy(golden["posemb_rows"]))


def test_both_ways_to_attend_agree():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 7, 12, dtype=torch.float64)
    dropout = Dropout(0.0)
    training = attend(query[:, :1], key, value, 3, dropout.train())
    torch.testing.assert_close(attend(query[:, :1], key, value, 3, dropout.eval()), training)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_sites(name):
    model = full_model(name)
    sites = [module for module in model.modules() if isinstance(module, Dropout)]
    per_block = 3  # attention probabilities, inside the MLP, and one module after both
    assert len(sites) == 1 + 12 * per_block + (2 if name == "imagenet_vit_map" else 0)


def test_dropout_changes_the_training_output_only():
    torch.manual_seed(0)
    model = ViT(dim=32, depth=1, num_heads=2, hidden=64, num_classes=5)
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 224, 224)
    plain = model(x)
    set_dropout(model, 0.5)
    assert not torch.allclose(model(x), plain)
    torch.testing.assert_close(model.eval()(x), plain, atol=1e-5, rtol=1e-4)


def test_gate_takes_the_activated_hidden_vector():
    torch.manual_seed(0)
    mlp, x = MLP(4, 8, 0.0, gated=True), torch.randn(3, 4)
    hidden = functional.gelu(mlp.layer1(x), approximate="tanh")
    torch.testing.assert_close(mlp(x), mlp.layer2(hidden * mlp.gate(hidden)))


def test_post_norm_ends_with_its_norm():
    torch.manual_seed(0)
    block = Block(8, 16, 2, 0.0, post_norm=True)
    out = block(torch.randn(2, 5, 8))
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    assert isinstance(full_model("imagenet_vit_post_ln").norm, torch.nn.Identity)


def test_attention_pool_initialisation():
    torch.manual_seed(0)
    pool = AttentionPool(384, 1536, 6, 0.0)
    bounds = {"probe": (6 / 768) ** 0.5, "key_value.weight": (6 / 1152) ** 0.5, "query.weight": (6 / 768) ** 0.5}
    parameters = dict(pool.named_parameters())
    for name, bound in bounds.items():
        value = parameters[name].detach()
        assert value.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    for name in ("query.bias", "key_value.bias", "out.bias", "mlp.layer1.bias"):
        assert parameters[name].detach().std().item() == pytest.approx(1e-6, rel=0.2)
    assert ParamRole.ATTENTION_KV in [parameter.role for parameter in parameter_roles(pool)]
