"""DLRM-small: shapes and roles of all variants, the table in parts, initialisation, compilation."""

from collections import Counter

import pytest
import torch

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.criteo1tb import SPECS
from algoperf_torch.workloads.criteo1tb.dlrm import Dlrm, HashedEmbedding
from algoperf_torch.workloads.layers import set_dropout
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles


def full_model(name):
    with torch.device("meta"):
        return build_workload(name).build_model()


def small_model(name, **options):
    workload = build_workload(name, model_scale="test")
    return Dlrm(**{**workload.model_options(), **options})


def inputs(batch=8, num_rows=4_096):
    ids = torch.randint(0, 3 * num_rows, (batch, 26)).float()
    return torch.cat([torch.rand(batch, 13), ids], dim=1)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [("criteo1tb", 20), ("criteo1tb_layernorm", 36), ("criteo1tb_embed_init", 20), ("criteo1tb_resnet", 20)],
)
def test_parameters(name, tensors):
    sizes = [parameter.numel() for parameter in full_model(name).parameters()]
    assert (len(sizes), sum(sizes)) == (tensors, SPECS[name].num_parameters)


def test_shapes_of_the_variants():
    base = Counter(tuple(p.shape) for p in full_model("criteo1tb").parameters())
    norms = Counter(tuple(p.shape) for p in full_model("criteo1tb_layernorm").parameters()) - base
    assert norms == {(512,): 4, (256,): 4, (128,): 4, (1024,): 4}
    resnet = Counter(tuple(p.shape) for p in full_model("criteo1tb_resnet").parameters())
    assert resnet == {
        (1048576, 128): 4, (256, 13): 1, (256, 256): 5, (256, 3584): 1, (1, 256): 1, (256,): 7, (1,): 1,
    }  # fmt: skip


def test_roles():
    roles = parameter_roles(full_model("criteo1tb"))
    assert Counter(p.role for p in roles) == {ParamRole.EMBEDDING: 4, ParamRole.WEIGHT: 8, ParamRole.BIAS: 8}
    for name in SPECS:
        assert [p.name for p in parameter_roles(full_model(name)) if p.is_output] == ["output.weight", "output.bias"]
    roles = Counter(p.role for p in parameter_roles(full_model("criteo1tb_layernorm")))
    assert roles[ParamRole.LAYER_NORM_SCALE] == roles[ParamRole.LAYER_NORM_BIAS] == 8


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("criteo1tb", {"weight": 12, "bias": 8}),
        ("criteo1tb_resnet", {"weight": 12, "bias": 8}),
        ("criteo1tb_layernorm", {"weight": 19, "bias": 15, "layer_norm_scale": 1, "layer_norm_bias": 1}),
    ],
)
def test_roles_that_submissions_of_the_reference_see(name, counts):
    roles = reference_roles(name for name, _ in full_model(name).named_parameters())
    assert Counter(role.value for role in roles.values()) == counts


def test_table_in_parts_is_one_table():
    table = HashedEmbedding(64, 3, 1.0)
    whole = torch.cat([part.detach() for part in table.parts])
    ids = torch.randint(0, 1000, (50, 26))
    out = table(ids)
    torch.testing.assert_close(out, whole[ids % 64], rtol=0, atol=0)
    out.square().sum().backward()
    whole.requires_grad_()
    whole[ids % 64].square().sum().backward()
    torch.testing.assert_close(torch.cat([part.grad for part in table.parts]), whole.grad)


def test_table_must_be_divisible():
    with pytest.raises(ValueError, match="divisible"):
        HashedEmbedding(63, 3, 1.0)


@pytest.mark.parametrize(
    ("name", "scale"), [("criteo1tb", 1 / 64), ("criteo1tb_embed_init", 1.0), ("criteo1tb_resnet", 1 / 64)]
)
def test_initial_table(name, scale):
    for part in small_model(name).embedding.requires_grad_(False).parts:
        assert float(part.min()) >= 0
        assert float(part.max()) == pytest.approx(scale, rel=1e-2)
        assert float(part.mean()) == pytest.approx(scale / 2, rel=2e-2)


def test_initial_mlps():
    torch.manual_seed(0)
    model = Dlrm(num_rows=64).requires_grad_(False)
    for block in model.bottom:
        weight = block.layers[0].weight
        limit = (6 / sum(weight.shape)) ** 0.5
        assert float(weight.abs().max()) == pytest.approx(limit, rel=1e-2)
        assert float(weight.std()) == pytest.approx(limit / 3**0.5, rel=2e-2)
    for weight in [*(block.layers[0].weight for block in model.top), model.output.weight]:
        assert float(weight.std()) == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.15)
        assert float(weight.abs().max()) > 2.5 * float(weight.std())
    biases = torch.cat([block.layers[0].bias * block.layers[0].out_features ** 0.5 for block in model.top])
    assert float(biases.std()) == pytest.approx(1, rel=0.05)
    draws = torch.cat([Dlrm(num_rows=4, bottom=(128,), top=(2,)).output.bias.detach() for _ in range(200)])
    assert float(draws.std()) == pytest.approx(1, rel=0.2)  # 1 / sqrt(out) of the output layer


def test_layer_norm_follows_the_activation():
    model = small_model("criteo1tb_layernorm")
    assert [type(layer).__name__ for layer in model.bottom[0].layers] == ["Linear", "ReLU", "LayerNorm"]
    assert [type(layer).__name__ for layer in model.top[-1].layers] == ["Linear", "ReLU", "LayerNorm", "Dropout"]


def test_residual_blocks():
    model = build_workload("criteo1tb_resnet").model_options()
    with torch.device("meta"):
        model = Dlrm(**model)
    assert [block.residual for block in model.bottom] == [False, True, True]
    assert [block.residual for block in model.top] == [False, True, True, True]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_one_dropout_site(name):
    model = small_model(name)
    x = inputs()
    plain = model(x)
    set_dropout(model, 0.5)
    assert not torch.allclose(model(x), plain)
    set_dropout(model, 0.0)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)
    set_dropout(model, 0.5)
    model.eval()
    torch.testing.assert_close(model(x), plain, rtol=1e-6, atol=1e-6)
    sites = [module for module in model.modules() if type(module).__name__ == "Dropout"]
    assert len(sites) == 1


@pytest.mark.parametrize("name", sorted(SPECS))
def test_compiles_once(name, count_compilations):
    model = small_model(name)
    x = inputs()
    outputs = []

    def step(rate):
        def call(compiled):
            set_dropout(model, rate)
            out = compiled(x)
            out.sum().backward()
            outputs.append(out.detach())

        return call

    assert count_compilations(model, step(0.0), step(0.1), step(0.5), step(0.0)) == 1
    torch.testing.assert_close(outputs[0], outputs[-1], rtol=0, atol=0)
    set_dropout(model, 0.0)
    torch.testing.assert_close(outputs[0], model(x).detach())
