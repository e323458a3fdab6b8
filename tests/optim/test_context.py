"""What a context promises beyond what the algorithms of `fixtures/` use."""

import torch

from algoperf_torch.workloads.layers import BatchNorm, Dropout


def test_reinitialising_leaves_the_switches_as_they_are(tiny):
    """Otherwise the dropout rate would jump back, and statistics would move although the context says they do not."""
    context = tiny.build_context()
    context.set_dropout(0.4)
    context.forward(tiny.make_batch(0), update_batch_norm=False)
    context.reinitialise_model(101)
    expected = tiny.build_model(101).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in context.model.state_dict().items())
    rates = [float(module.rate) for module in context.model.modules() if isinstance(module, Dropout)]
    assert rates == [torch.tensor(0.4).item()] * len(rates) != []
    context.forward(tiny.make_batch(1), update_batch_norm=False)
    (statistics,) = [module for module in context.model.modules() if isinstance(module, BatchNorm)]
    assert torch.equal(statistics.running_mean, torch.zeros(16))
