"""Every workload's parameters have the reference's shapes: holds for golden vectors of every form."""

import torch

from algoperf_torch.workloads.registry import build_workload, workload_spec

GOLDEN_FORM = None


def test_golden_shapes(golden):
    with torch.device("meta"):  # shapes alone: a model may be gigabytes
        model = build_workload(golden.workload).build_model()
    assert sorted(tuple(parameter.shape) for parameter in model.parameters()) == golden.shapes
    assert sum(parameter.numel() for parameter in model.parameters()) == golden.param_count
    assert workload_spec(golden.workload).num_parameters == golden.param_count
