"""The Transformer: parameters and roles of all variants, masks, positions, variants' equations, compilation."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional

from algoperf_torch.workloads.layers import Dropout, set_dropout
from algoperf_torch.workloads.registry import build_workload
from algoperf_torch.workloads.roles import parameter_roles, reference_roles
from algoperf_torch.workloads.wmt import SPECS
from algoperf_torch.workloads.wmt.transformer import FeedForward, SelfAttention, position_table

TENSORS = {"wmt": 155, "wmt_post_ln": 151, "wmt_attention_temp": 155, "wmt_glu_tanh": 179}


def full_model(name):
    with torch.device("meta"):
        return build_workload(name).build_model()


def small_model(name, seed=0):
    torch.manual_seed(seed)
    return build_workload(name, model_scale="test").build_model()


def tokens(batch=2, length=12, seed=0, low=1):
    return torch.randint(low, 500, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_the_test_names_every_variant():
    assert sorted(TENSORS) == sorted(SPECS)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_parameters(name):
    sizes = [parameter.numel() for parameter in full_model(name).parameters()]
    assert (len(sizes), sum(sizes)) == (TENSORS[name], SPECS[name].num_parameters)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("wmt", {}),
        ("wmt_attention_temp", {}),
        ("wmt_post_ln", {"layer_norm_scale": -2, "layer_norm_bias": -2}),
        ("wmt_glu_tanh", {"weight": 12, "bias": 12}),
    ],
)
def test_roles(name, changes):
    expected = {
        "embedding": 1, "attention_qkv": 12, "attention_q": 6, "attention_kv": 6, "attention_out": 18, "weight": 24,
        "bias": 24, "layer_norm_scale": 32, "layer_norm_bias": 32,
    }  # fmt: skip
    expected = {role: count + changes.get(role, 0) for role, count in expected.items()}
    model = full_model(name)
    assert Counter(p.role.value for p in parameter_roles(model)) == expected
    assert Counter(role.value for role in reference_roles(n for n, _ in model.named_parameters()).values()) == expected
    assert [p.name for p in parameter_roles(model) if p.is_output] == ["embedding.weight"]


def test_position_table():
    table = position_table(256, 1024).double()
    for position, k in ((0, 0), (3, 0), (17, 100), (255, 511)):
        angle = position * math.exp(-k * math.log(10_000) / 511)
        assert float(table[position, k]) == pytest.approx(math.sin(angle), abs=2e-5)
        assert float(table[position, 512 + k]) == pytest.approx(math.cos(angle), abs=2e-5)


def test_logits_are_scaled_and_tied():
    model = small_model("wmt").eval()
    source, target = tokens(), tokens(seed=1)
    with torch.no_grad():
        before = model(source, target)
        hidden = torch.randn(2, 3, model.width)
        torch.testing.assert_close(model.logits(hidden), hidden @ model.embedding.weight.T / model.width**0.5)
        assert before.shape == (2, 12, 512)


def test_later_targets_are_not_seen():
    model = small_model("wmt").eval()
    source, target = tokens(), tokens(seed=1)
    changed = target.clone()
    changed[:, 7] = 3
    with torch.no_grad():
        a, b = model(source, target), model(source, changed)
    torch.testing.assert_close(a[:, :8], b[:, :8], rtol=0, atol=1e-6)  # the token itself is an input one place later
    assert not torch.allclose(a[:, 8:], b[:, 8:])


def test_padding_of_the_source_is_not_seen():
    model = small_model("wmt").eval()
    source, target = tokens(), tokens(seed=1)
    with torch.no_grad():
        torch.testing.assert_close(
            model(functional.pad(source, (0, 5)), target), model(source, target), rtol=1e-5, atol=1e-5
        )


def test_a_query_without_keys_averages():
    attention = SelfAttention(8, 2, 1.0, 0.0)
    x = torch.randn(1, 4, 8)
    mask = torch.full((1, 1, 4, 4), -1e10)
    value = attention.in_proj(x).chunk(3, dim=-1)[2]
    expected = attention.out_proj(value.mean(dim=1, keepdim=True).expand(-1, 4, -1))
    for module in (attention.train(), attention.eval()):
        torch.testing.assert_close(module(x, mask), expected)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_sentences_of_a_packed_row_do_not_see_each_other(name):
    model = small_model(name).eval()
    a, b = (tokens(1, 5, 0), tokens(1, 6, 1)), (tokens(1, 7, 2), tokens(1, 4, 3))
    row = {
        "inputs": torch.cat([a[0], b[0]], 1),
        "targets": torch.cat([a[1], b[1]], 1),
        "inputs_position": torch.tensor([[*range(5), *range(7)]]),
        "targets_position": torch.tensor([[*range(6), *range(4)]]),
        "inputs_segmentation": torch.tensor([[1] * 5 + [2] * 7]),
        "targets_segmentation": torch.tensor([[1] * 6 + [2] * 4]),
    }
    with torch.no_grad():
        packed = model(**row)
        torch.testing.assert_close(packed[:, :6], model(*a), rtol=1e-4, atol=1e-5)
        # The first input of the second sentence is the last token of the first one, not the start token.
        alone = model(*b)
        assert not torch.allclose(packed[:, 6:], alone, rtol=1e-3)
        changed = {**row, "targets": row["targets"].clone()}
        changed["targets"][0, 2] = 77
        torch.testing.assert_close(model(**changed)[:, 6:], packed[:, 6:], rtol=1e-4, atol=1e-5)


def test_variants_differ_where_they_should():
    source, target = tokens(), tokens(seed=1)
    with torch.no_grad():
        base, hot = small_model("wmt").eval(), small_model("wmt_attention_temp").eval()
        assert hot.decoder_layers[0].cross_attn.scale == 4 * base.decoder_layers[0].cross_attn.scale
        assert hot.encoder_layers[0].self_attn.scale == 4 * base.encoder_layers[0].self_attn.scale
        assert not torch.allclose(base(source, target), hot(source, target))
        layer = small_model("wmt_post_ln").eval().encoder_layers[0]
        x, mask = torch.randn(2, 12, 64), torch.zeros(2, 1, 12, 12)
        y = layer.norm1(x + layer.self_attn(x, mask))
        torch.testing.assert_close(layer(x, mask), layer.norm2(y + layer.mlp(y)))
        mlp = FeedForward(8, 16, glu=True, dropout=0.0)
        x = torch.randn(3, 8)
        torch.testing.assert_close(mlp(x), mlp.linear2(torch.tanh(mlp.linear1(x)) * mlp.gate(x)))


def test_initialisation():
    model = small_model("wmt_glu_tanh")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            limit = (6 / sum(module.weight.shape)) ** 0.5
            weight = module.weight.detach()
            assert 0.95 * limit < float(weight.abs().max()) <= limit, name
            assert float(weight.std()) == pytest.approx(limit / 3**0.5, rel=0.05), name
            if module.bias is not None:
                assert 0 < float(module.bias.detach().abs().max()) < 1e-5, name
    assert float(model.embedding.weight.detach().std()) == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_dropout_sites(name):
    model = small_model(name)
    sites = [module for module in model.modules() if isinstance(module, Dropout)]
    layers = len(model.encoder_layers)
    # both embeddings; per attention its probabilities and its output; per MLP the activation and the output
    assert len(sites) == 2 + layers * (1 * 2 + 2) + layers * (2 * 2 + 2)
    source, target = tokens(), tokens(seed=1)
    set_dropout(model, 0.0)
    with torch.no_grad():
        plain = model.train()(source, target)
        torch.testing.assert_close(model.eval()(source, target), plain, rtol=1e-4, atol=1e-5)
        model.train()
        for site in sites:
            site.rate.fill_(0.5)
            assert not torch.allclose(model(source, target), plain)
            site.rate.fill_(0.0)


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_compiles_once(name, count_compilations):
    model = small_model(name)
    packed = {
        "inputs": tokens(2, 16), "targets": tokens(2, 16, 1),
        "inputs_position": torch.arange(16).expand(2, -1), "targets_position": torch.arange(16).expand(2, -1),
        "inputs_segmentation": torch.ones(2, 16, dtype=torch.int64),
        "targets_segmentation": torch.ones(2, 16, dtype=torch.int64),
    }  # fmt: skip

    def step(rate):
        def call(compiled):
            set_dropout(model, rate)
            out = compiled(**packed)
            out.sum().backward()
            if rate == 0:
                torch.testing.assert_close(out, model(**packed))

        return call

    assert count_compilations(model, step(0.0), step(0.1), step(0.3), step(0.0)) == 1


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_step_by_step_equals_teacher_forcing(name):
    model = small_model(name).eval()
    source, target = tokens(3, 9), tokens(3, 10, 1)
    source[1, 6:] = 0
    with torch.no_grad():
        full = model(source, target)
        cache = model.start_decoding(source, 1, 10)
        previous, found = torch.zeros(3, dtype=torch.int64), []
        for position in range(10):
            found.append(model.decode_step(previous, position, cache))
            previous = target[:, position]
    torch.testing.assert_close(torch.stack(found, dim=1), full, rtol=1e-4, atol=1e-5)


def test_golden_steps(metric_vectors, filled_wmt):
    arrays = metric_vectors.arrays
    source, target = (torch.from_numpy(arrays[name]) for name in ("beam_model_src", "decode_forced_targets"))
    with torch.no_grad():
        full = filled_wmt(source, target)[..., :64]
        cache = filled_wmt.start_decoding(source, 1, 6)
        previous, found = torch.zeros(2, dtype=torch.int64), []
        for position in range(6):
            found.append(filled_wmt.decode_step(previous, position, cache)[:, :64])
            previous = target[:, position]
    for logits, name in ((torch.stack(found, 1), "decode_step_logits_first64"), (full, "decode_full_logits_first64")):
        np.testing.assert_allclose(logits, arrays[name], rtol=0, atol=1e-5 * arrays[name].std())
