"""The exponential moving average of many tensors, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import computed, write_


def ema_(averages: Sequence[Tensor], params: Sequence[Tensor], weight: Tensor) -> None:
    """a = a + weight (p - a) for every average a and parameter p, computed in float32; `weight` (0-d) is 1 - decay."""
    for average, param in zip(averages, params, strict=True):
        a, p = computed(average, param)
        write_((average,), (a.lerp(p, weight.to(a)),))
