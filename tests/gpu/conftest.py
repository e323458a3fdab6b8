"""What only a device can show. `make gpu` also runs tests/kernels on it: the same cases, with ALGOPERF_TEST_DEVICE=cuda."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        reason = "needs CUDA"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        reason = "kernels are interpreted in this process; run with ALGOPERF_TEST_DEVICE=cuda"
    else:
        return
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
