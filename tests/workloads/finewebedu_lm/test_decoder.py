"""The language model: parameters, roles, rotary positions, normalised attention, gated MLP, initialisation, compilation."""

import math
from collections import Counter

import pytest
import torch

from algoperf_torch.workloads.finewebedu_lm import SPECS
from algoperf_torch.workloads.finewebedu_lm.decoder import (
    CausalAttention,
    GatedMlp,
    LanguageModel,
    normalise,
    rotary_table,
    rotate,
)
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles


@pytest.fixture(scope="module")
def full_model():
    with torch.device("meta"):
        return build_workload("finewebedu_lm").build_model()


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    return build_workload("finewebedu_lm", model_scale="test").build_model()


def test_parameters(full_model):
    shapes = Counter(tuple(p.shape) for p in full_model.parameters())
    assert shapes == {
        (50257, 1024): 1, (3072, 1024): 12, (1024, 1024): 12, (8192, 1024): 12, (1024, 4096): 12, (1024,): 25, (): 12,
    }  # fmt: skip
    assert sum(p.numel() for p in full_model.parameters()) == SPECS["finewebedu_lm"].num_parameters


def test_roles(full_model):
    expected = {"embedding": 1, "attention_qkv": 12, "attention_out": 12, "weight": 36, "layer_norm_scale": 25}
    assert Counter(p.role.value for p in parameter_roles(full_model)) == expected
    names = [name for name, _ in full_model.named_parameters()]
    assert Counter(role.value for role in reference_roles(names).values()) == expected
    assert [p.name for p in parameter_roles(full_model) if p.is_output] == ["embedding.weight"]


def test_rotary_positions_turn_adjacent_pairs():
    cos, sin = rotary_table(20, 128)
    x = torch.randn(20, 128)
    turned = rotate(x, cos, sin)
    for position, i in ((0, 5), (1, 0), (7, 13), (19, 63)):
        angle = position * 500_000 ** (-2 * i / 128)
        a, b = x[position, 2 * i : 2 * i + 2].tolist()
        expected = [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
        assert turned[position, 2 * i : 2 * i + 2].tolist() == pytest.approx(expected, abs=1e-5)


def test_scores_depend_on_distances_alone():
    cos, sin = rotary_table(30, 64)
    query, key = torch.randn(64), torch.randn(64)
    scores = rotate(query.expand(30, -1), cos, sin) @ rotate(key.expand(30, -1), cos, sin).T
    torch.testing.assert_close(scores[9, 4], scores[25, 20], rtol=1e-4, atol=1e-4)


def test_epsilon_is_added_to_the_quotient():
    x = torch.tensor([[3.0, 0.0, -4.0]])
    torch.testing.assert_close(normalise(x), torch.tensor([[0.6 + 1e-6, 1e-6, -0.8 + 1e-6]]), rtol=0, atol=1e-7)


def test_attention():
    torch.manual_seed(0)
    attention = CausalAttention(16, 2, context=8)
    x, (cos, sin) = torch.randn(1, 6, 16), rotary_table(6, 8)
    query, key, value = (part.view(6, 2, 8).transpose(0, 1) for part in attention.in_proj(x)[0].chunk(3, -1))
    query, key = (normalise(rotate(side, cos, sin)) for side in (query, key))
    scores = attention.scale * query @ key.mT  # no 1/sqrt(d)
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(6, 16)
    torch.testing.assert_close(attention(x, cos, sin)[0], attention.out_proj(mixed), rtol=1e-4, atol=1e-5)


def test_gated_mlp():
    mlp = GatedMlp(8, 200)
    assert mlp.linear2.in_features == 256  # rounded up
    x = torch.randn(3, 8)
    first, second = mlp.linear1(x).chunk(2, dim=-1)
    torch.testing.assert_close(mlp(x), mlp.linear2(first * second.sigmoid()))


def test_later_tokens_are_not_seen(small_model):
    tokens = torch.randint(0, 512, (2, 20))
    changed = tokens.clone()
    changed[:, 12:] = 7
    with torch.no_grad():
        torch.testing.assert_close(small_model(tokens)[:, :12], small_model(changed)[:, :12], rtol=1e-4, atol=1e-5)


def test_initialisation():
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=2_000, width=128, num_layers=3, num_heads=2, mlp_width=256, context=1024)
    closing = 0.02 / 6**0.5
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.dim() == 0:
            assert float(values) == pytest.approx(math.log2(1024**2 - 1024))
        elif values.dim() == 1:
            assert (values == 1).all()
        else:
            closes = name.endswith(("attn.out_proj.weight", "mlp.linear2.weight"))
            assert float(values.std()) == pytest.approx(closing if closes else 0.02, rel=0.03), name
            assert abs(float(values.mean())) < 3e-4, name


def test_no_dropout_and_no_biases(small_model):
    assert not any("bias" in name for name, _ in small_model.named_parameters())
    tokens = torch.randint(0, 512, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(small_model.train()(tokens), small_model.eval()(tokens), rtol=0, atol=0)


def test_compiles_once(small_model, count_compilations):
    def call(compiled):
        tokens = torch.randint(0, 512, (2, 64), dtype=torch.int32)
        out = compiled(tokens)
        out.sum().backward()
        torch.testing.assert_close(out, small_model(tokens))

    assert count_compilations(small_model.train(), call, call, call) == 1
