"""Dropout and batch norm whose switches are tensors."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from algoperf_torch.workloads.layers import (
    BatchNorm,
    Dropout,
    running_statistics,
    set_batch_norm_group_size,
    set_batch_norm_update,
    set_dropout,
    truncated_normal_,
)


def trained(layer, batches):
    for batch in batches:
        layer(batch)
    return layer


def batches(count=3, shape=(12, 5, 4, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(shape, generator=generator) + 1 for _ in range(count)]


# ------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("whole_channels", [False, True])
def test_rate_zero_is_the_exact_identity(whole_channels):
    x = torch.randn(7, 5, 3, requires_grad=True)
    y = Dropout(0.0, whole_channels=whole_channels)(x)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_nothing_is_dropped_in_evaluation():
    x = torch.randn(100)
    assert Dropout(0.9).eval()(x) is x


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_drops_the_fraction_and_keeps_the_mean(rate, dtype):
    torch.manual_seed(0)
    x = torch.ones(400_000, dtype=dtype, requires_grad=True)
    y = Dropout(rate)(x)
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(rate, abs=3e-3)
    assert torch.equal(y[y != 0].detach().unique(), (1 / (1 - torch.tensor(rate)).to(dtype)).reshape(1))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("rate", [0.0, 1e-7, 0.1, 0.5, 0.9])
def test_dropout_keeps_what_is_drawn_at_or_above_the_rate(rate):
    x = torch.ones(100_000)
    torch.manual_seed(3)
    y = Dropout(rate)(x)
    torch.manual_seed(3)
    kept = torch.rand(x.shape) >= torch.tensor(rate)
    assert torch.equal(y, kept / (1 - torch.tensor(rate)))


def test_whole_channels():
    torch.manual_seed(0)
    y = Dropout(0.5, whole_channels=True)(torch.ones(20, 30, 4, 2))
    flat = y.flatten(2)
    assert torch.equal(flat.amin(dim=2), flat.amax(dim=2))
    assert 0.4 < (flat[..., 0] == 0).float().mean().item() < 0.6


def test_set_dropout_reaches_every_layer():
    model = nn.Sequential(Dropout(0.1), nn.Linear(2, 2), nn.Sequential(Dropout(0.2)))
    set_dropout(model, 0.3)
    assert [float(module.rate) for module in model.modules() if isinstance(module, Dropout)] == pytest.approx(
        [0.3, 0.3]
    )
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="outside"):
            set_dropout(model, rate)


# ------------------------------------------------------------------------------------------------ batch norm


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 7), (12, 5, 4, 3)], ids=str)
def test_one_group_equals_torch(shape):
    peer_type = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    ours, peer = BatchNorm(5), peer_type(5)
    for layer in (ours, peer):
        nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(layer.bias, generator=torch.Generator().manual_seed(2))
    for batch in batches(shape=shape):
        x, x_peer = batch.clone().requires_grad_(), batch.clone().requires_grad_()
        y, y_peer = ours(x), peer(x_peer)
        torch.testing.assert_close(y, y_peer, atol=1e-5, rtol=1e-5)
        (y**3).sum().backward()
        (y_peer**3).sum().backward()
        torch.testing.assert_close(x.grad, x_peer.grad, atol=1e-3, rtol=1e-4)
    for name, value in peer.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
    torch.testing.assert_close(ours.eval()(batch), peer.eval()(batch))


def test_groups_are_normalised_each_by_itself():
    (batch,) = batches(1)
    grouped, single = BatchNorm(5), BatchNorm(5)
    set_batch_norm_group_size(grouped, 4)
    expected = torch.cat([single(part) for part in batch.split(4)])
    torch.testing.assert_close(grouped(batch), expected)


def test_group_size_that_does_not_divide_means_one_group():
    (batch,) = batches(1)
    grouped = BatchNorm(5)
    set_batch_norm_group_size(grouped, 5)
    torch.testing.assert_close(grouped(batch), BatchNorm(5)(batch))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_averaged_running_statistics_of_the_ranks_are_those_of_one(num_ranks):
    """Also where updates are switched off in between: the average is linear."""
    one, ranks = BatchNorm(5), [BatchNorm(5) for _ in range(num_ranks)]
    for layer in (one, *ranks):
        set_batch_norm_group_size(layer, 2)
    for number, batch in enumerate(batches(6)):
        for layer in (one, *ranks):
            set_batch_norm_update(layer, number != 3)
        whole = one(batch)
        shares = [rank(part) for rank, part in zip(ranks, batch.chunk(num_ranks), strict=True)]
        torch.testing.assert_close(torch.cat(shares), whole)
    for index, statistic in enumerate(running_statistics(one)):
        mean = torch.stack([running_statistics(rank)[index] for rank in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, statistic)


def test_running_variance_is_the_mean_of_the_groups_unbiased_variances():
    (batch,) = batches(1)
    layer = BatchNorm(5, momentum=1.0)
    set_batch_norm_group_size(layer, 6)
    layer(batch)
    parts = torch.stack([part.transpose(0, 1).flatten(1) for part in batch.split(6)])
    torch.testing.assert_close(layer.running_var, parts.var(dim=2, correction=1).mean(dim=0))
    torch.testing.assert_close(layer.running_mean, parts.mean(dim=(0, 2)))


def test_without_update_batch_statistics_normalise_and_nothing_moves():
    layer, moving = BatchNorm(5), BatchNorm(5)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for _ in range(2):  # twice in a row must not lose anything
        set_batch_norm_update(layer, False)
        for batch in batches():
            torch.testing.assert_close(layer(batch), moving(batch))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    set_batch_norm_update(layer, True)
    layer(batches(1)[0])
    torch.testing.assert_close(layer.running_mean, trained(BatchNorm(5), batches(1)).running_mean)


def test_update_bn_of_torch_recomputes_the_plain_average():
    data = batches(4)
    ours, peer = nn.Sequential(trained(BatchNorm(5), data)), nn.Sequential(trained(nn.BatchNorm2d(5), data))
    others = batches(3, seed=9)
    for model in (ours, peer):
        torch.optim.swa_utils.update_bn(others, model)
    torch.testing.assert_close(ours[0].running_mean, peer[0].running_mean)
    torch.testing.assert_close(ours[0].running_var, peer[0].running_var)
    assert ours[0].momentum == 0.1
    assert int(ours[0].num_batches_tracked) == 3


def test_input_of_lower_precision_keeps_its_dtype_and_full_statistics():
    (batch,) = batches(1)
    layer, full = BatchNorm(5), BatchNorm(5)
    y = layer(batch.bfloat16())
    assert y.dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32
    torch.testing.assert_close(y.float(), full(batch.bfloat16().float()), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(layer.running_var, full.running_var)
    assert layer.eval()(batch.bfloat16()).dtype == torch.bfloat16


def test_single_value_per_channel_does_not_divide_by_zero():
    layer = BatchNorm(5)
    assert torch.isfinite(layer(torch.randn(1, 5))).all()
    assert torch.isfinite(layer.running_var).all()


def test_input_without_channels_is_refused():
    with pytest.raises(ValueError, match="batch, channels"):
        BatchNorm(5)(torch.randn(5))


def test_running_statistics_leaves_out_switches_and_counters():
    model = nn.Sequential(BatchNorm(5), Dropout(0.1))
    assert [tuple(statistic.shape) for statistic in running_statistics(model)] == [(5,), (5,)]
    assert "1.rate" not in model.state_dict()
    assert "0.update" not in model.state_dict()


# ------------------------------------------------------------------------------------------------ compilation


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), BatchNorm(4)
        self.dropout, self.head = Dropout(0.5), nn.Linear(4, 2)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(x.mean(dim=(2, 3))))


def test_switches_do_not_recompile():
    torch._dynamo.reset()
    model, graphs = Net(), []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    set_batch_norm_group_size(model, 2)
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    x = torch.randn(6, 3, 5, 5)
    for rate, update in [(0.5, True), (0.0, True), (0.1, False), (0.0, False), (0.9, True)]:
        set_dropout(model, rate)
        set_batch_norm_update(model, update)
        compiled(x).sum().backward()
    assert len(graphs) == 1
    model.eval()
    compiled(x)
    model.train()
    compiled(x)
    assert len(graphs) == 2  # one for each mode


def test_compiled_equals_eager_and_moves_the_statistics():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net()
    other = Net()
    other.load_state_dict(model.state_dict())
    for net in (model, other):
        set_dropout(net, 0.0)
        set_batch_norm_group_size(net, 3)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        x = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compiled(x), model(x))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)


# ------------------------------------------------------------------------------------------------ initialisation


@pytest.mark.parametrize("shape", [(500, 400), (64, 32, 3, 3), (128, 64, 2, 2)], ids=str)
def test_truncated_normal(shape):
    torch.manual_seed(0)
    weight = torch.empty(shape)
    truncated_normal_(weight)
    fan_in = weight[0].numel()
    assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    limit = 2 * fan_in**-0.5 / 0.87962566103423978
    assert weight.abs().max().item() <= limit * (1 + 1e-6)
    assert weight.abs().max().item() > 0.98 * limit
