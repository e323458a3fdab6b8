"""fastMRI slices: from measured columns to normalised pairs of images."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.kspace import reference
from algoperf_torch.kernels.registry import runs_fused


@torch.library.custom_op("algoperf::reconstruct", mutates_args=())
def reconstruct(
    measured: Tensor, kept: Tensor, targets: Tensor, limit: float = 6.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(inputs, targets, mean, std) of slices, from complex columns [batch, width, crop] and those kept; see `reference`."""
    if runs_fused("reconstruct", measured.device):
        from algoperf_torch.kernels.kspace import fused

        return fused.reconstruct(measured.contiguous(), kept.contiguous(), targets.contiguous(), limit)
    return reference.reconstruct(measured, kept, targets, limit)


@reconstruct.register_fake
def _(
    measured: Tensor,
    kept: Tensor,  # noqa: ARG001
    targets: Tensor,
    limit: float = 6.0,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = len(measured)
    images = (torch.empty_like(targets, memory_format=torch.contiguous_format) for _ in range(2))
    return *images, targets.new_empty(batch), targets.new_empty(batch)  # type: ignore[return-value]
