"""What submissions import as `algoperf.pytorch_utils`."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def pytorch_setup() -> tuple[bool, int, torch.device, int]:
    """(whether gradients are shared between processes, local rank, device, number of visible CUDA devices).

    With one process there is nothing to reduce, also under torchrun, and no process group to do it.
    """
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    return distributed, rank, device, torch.cuda.device_count()
