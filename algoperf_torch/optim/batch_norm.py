"""Batch-norm statistics for weights that were never trained at: averages, schedule-free evaluation points.

The running statistics belong to the weights that training visits. Evaluated with other weights they are wrong, often by
far. `BatchNormRecomputation` keeps the latest training batches and computes the statistics anew from them.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from algoperf_torch.errors import SubmissionError
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.spec import Batch


class BatchNormRecomputation:
    """Keeps up to `num_batches` batches since the last evaluation; does nothing for a model without batch norm.

    Works on every module with `running_mean`, `running_var` and `momentum`, whose training pass moves the former by
    the latter towards the batch's statistics.
    """

    def __init__(self, model: nn.Module, num_batches: int = 8) -> None:
        self._layers: list[Any] = [
            module
            for module in model.modules()
            if isinstance(getattr(module, "running_mean", None), Tensor)
            and isinstance(getattr(module, "running_var", None), Tensor)
        ]
        self._batches: deque[Batch] = deque(maxlen=num_batches)

    def keep(self, batch: Any) -> None:
        """Remembers what a step drew: a batch, or a sequence of them."""
        if not self._layers:
            return
        batches = batch if isinstance(batch, list | tuple) else [batch]
        if not all(isinstance(item, dict) for item in batches):
            raise SubmissionError(
                f"Batch-norm statistics of averaged weights are recomputed from batches, but `select_batch` returned a "
                f"{type(batch).__name__}. Return a batch or a list of batches."
            )
        self._batches.extend(batches)

    @torch.no_grad()
    def recompute(self, context: TrainingContext) -> None:
        """Replaces the running statistics by those of the kept batches at the present weights; lets the batches go.

        Started from zero, n passes give the sum of momentum (1 - momentum)^(n - k) times batch k; those weights add up
        to 1 - (1 - momentum)^n. Runs the uncompiled model: a graph without gradients would be compiled for few batches.
        """
        num_passes = len(self._batches)
        if not num_passes:
            return
        for layer in self._layers:
            layer.running_mean.zero_()
            layer.running_var.zero_()
        while self._batches:
            context.forward(self._batches.popleft(), compiled=False)
        for layer in self._layers:
            weight = 1.0 - (1.0 - layer.momentum) ** num_passes
            layer.running_mean.div_(weight)
            layer.running_var.div_(weight)
