"""Model scale mini: every workload and variant has one, small and complete."""

import pytest

from algoperf_torch.workloads.registry import build_workload, workload_names


@pytest.mark.parametrize("name", [name for name in workload_names() if name not in ("digits", "mnist", "cifar")])
def test_models_keep_their_parts(name):
    """The kinds of modules are those of the model that tests use, which skips no part of the full-size one."""
    small = build_workload(name, model_scale="mini")
    model = small.build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert small.spec.batch_size <= 1_024
    like = build_workload(name, model_scale="test").build_model()
    assert {type(module) for module in model.modules()} == {type(module) for module in like.modules()}
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
