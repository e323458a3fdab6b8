"""Masked batch norm, layer norm and subsampling of the speech models."""

import pytest
import torch
from torch.nn import functional

from algoperf_torch.workloads.layers import set_batch_norm_group_size, set_batch_norm_update
from algoperf_torch.workloads.librispeech.layers import LayerNorm, MaskedBatchNorm, Subsampling


def example(batch=4, frames=6, channels=3):
    torch.manual_seed(0)
    paddings = (torch.arange(frames) >= torch.tensor([6, 3, 1, 5])[:batch, None]).double()
    return torch.randn(batch, frames, channels, dtype=torch.float64) * 2 + 1, paddings


def norm(**options):
    layer = MaskedBatchNorm(3, **options).double()
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([0.5, 0.0, -0.2]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, 1.0]))
    return layer


def test_batch_norm_over_valid_frames():
    x, paddings = example()
    layer, valid = norm(), example()[1] == 0
    found = layer(x, paddings)
    frames = x[valid]
    mean, var = frames.mean(0), frames.var(0, correction=0)
    expected = (frames - mean) / (var + 1e-3).sqrt() * (1 + layer.scale) + layer.bias
    torch.testing.assert_close(found[valid], expected)
    assert torch.all(found[~valid] == 0)
    torch.testing.assert_close(layer.running_mean, 1e-3 * mean)
    torch.testing.assert_close(layer.running_var, 1 - 1e-3 + 1e-3 * var)
    changed = layer(torch.where(valid[..., None], x, 1e3), paddings)
    torch.testing.assert_close(changed, found)


def test_batch_norm_in_evaluation_mode():
    x, paddings = example()
    layer = norm().eval()
    with torch.no_grad():
        layer.running_mean.fill_(0.3)
        layer.running_var.fill_(2.0)
    expected = ((x - 0.3) / (2.0 + 1e-3) ** 0.5 * (1 + layer.scale) + layer.bias) * (1 - paddings)[..., None]
    torch.testing.assert_close(layer(x, paddings), expected)


def test_batch_norm_by_groups_is_batch_norm_of_each_group():
    x, paddings = example()
    whole, parts = norm(), norm()
    set_batch_norm_group_size(whole, 2)
    together = torch.cat([parts(x[:2], paddings[:2]), parts(x[2:], paddings[2:])])
    torch.testing.assert_close(whole(x, paddings), together)
    one = [norm(), norm()]
    for layer, rows in zip(one, (slice(2), slice(2, 4)), strict=True):
        layer(x[rows], paddings[rows])
    torch.testing.assert_close(whole.running_var, (one[0].running_var + one[1].running_var) / 2)
    torch.testing.assert_close(whole.running_mean, (one[0].running_mean + one[1].running_mean) / 2)


def test_synchronised_batch_norm_knows_no_groups():
    x, paddings = example()
    grouped, plain = norm(synchronised=True), norm()
    set_batch_norm_group_size(grouped, 2)
    torch.testing.assert_close(grouped(x, paddings), plain(x, paddings))


def test_batch_norm_update_switch():
    x, paddings = example()
    layer = norm()
    expected = layer(x, paddings)
    before = layer.running_mean.clone(), layer.running_var.clone()
    for _ in range(2):
        set_batch_norm_update(layer, False)
        torch.testing.assert_close(layer(x, paddings), expected)
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])
    set_batch_norm_update(layer, True)
    layer(x, paddings)
    assert not torch.equal(layer.running_mean, before[0])


def test_batch_norm_gradient():
    x, paddings = example()
    layer = norm()
    assert torch.autograd.gradcheck(lambda x: layer(x, paddings), (x.requires_grad_(),))


def test_layer_norm_stores_the_deviation_from_one():
    layer = LayerNorm(5).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), functional.layer_norm(x, (5,), eps=1e-6))
    with torch.no_grad():
        layer.scale.fill_(1.0)
    torch.testing.assert_close(layer(x), 2 * functional.layer_norm(x, (5,), eps=1e-6))


@pytest.mark.parametrize("frames", [8, 9, 10, 11])
def test_subsampling_rounds_up(frames):
    layer = Subsampling(4)
    paddings = (torch.arange(frames) >= torch.tensor([frames, 5])[:, None]).float()
    out, out_paddings = layer(torch.randn(2, frames, 80), paddings)
    assert out.shape == (2, -(-frames // 4), 4)
    assert (1 - out_paddings).sum(dim=1).tolist() == [-(-frames // 4), 2]


def test_subsampling_hides_padding():
    layer = Subsampling(4)
    paddings = (torch.arange(16) >= torch.tensor([[8]])).float()
    x = torch.randn(1, 16, 80)
    changed = x.clone()
    changed[:, 10:] = 100.0  # the first two padded frames are seen by the convolution at the last valid one
    torch.testing.assert_close(layer(x, paddings)[0][:, :2], layer(changed, paddings)[0][:, :2])
    torch.testing.assert_close(layer(x, paddings)[0][:, 2:], layer.linear.bias.expand(1, 2, 4))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_compiled_subsampling_stores_no_booleans(activation):
    """Compiled code on a CPU stores them one by one, which made compiled speech models slower than eager ones."""
    layer, kept = Subsampling(8, activation), []
    compiled = torch.compile(layer, backend="aot_eager_decomp_partition", fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.dtype) or x, lambda x: x):
        x, _ = compiled(torch.randn(2, 16, 80), torch.zeros(2, 16))
    x.sum().backward()
    assert set(kept) == {torch.float32}
