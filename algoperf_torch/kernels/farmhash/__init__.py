"""Ids of Criteo's categorical fields."""

from __future__ import annotations

import torch
from torch import Tensor

from algoperf_torch.kernels.farmhash import reference
from algoperf_torch.kernels.registry import runs_fused


@torch.library.custom_op("algoperf::category_ids", mutates_args=())
def category_ids(words: Tensor, sizes: Tensor) -> Tensor:
    """int64 [rows, columns] in [0, sizes): FarmHash of every field (eight characters as int64) and its column's number."""
    if runs_fused("category_ids", words.device):
        from algoperf_torch.kernels.farmhash import fused

        return fused.category_ids(words.contiguous(), sizes)
    return reference.category_ids(words, sizes)


@category_ids.register_fake
def _(words: Tensor, sizes: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(words, memory_format=torch.contiguous_format)
