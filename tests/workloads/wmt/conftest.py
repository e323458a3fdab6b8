"""Shared by the tests of translation: the full model with golden parameters."""

import pytest
import torch

from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="session")
def filled_wmt(fill):
    model = fill(build_workload("wmt").build_model())
    with torch.no_grad():
        model.embedding.weight.mul_(32)
    return model.eval()
