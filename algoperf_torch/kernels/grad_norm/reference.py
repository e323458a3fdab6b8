"""The norm of all gradients and the factor that clips them, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algoperf_torch.kernels.arithmetic import computed


def clip_coefficient(grads: Sequence[Tensor], max_norm: float) -> tuple[Tensor, Tensor]:
    """(norm, min(1, max_norm / (norm + 1e-6))) of all elements of all gradients together, float32, 0-d.

    The factor is the `grad_scale` of an update: gradients are read for the norm and for the update, and never rewritten.
    Agrees with `torch.nn.utils.clip_grad_norm_`.
    """
    squares = [grad.square().sum() for grad in computed(*grads)]
    norm = torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
    return norm, (max_norm / (norm + 1e-6)).clamp(max=1.0)
