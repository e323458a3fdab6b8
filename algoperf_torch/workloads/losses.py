"""The losses that workloads share. Each takes optional weights and gives `LossOutput`, local to the rank.

Nothing is averaged, regularised or reduced over ranks here: a training step divides the global sum of `summed` by the
global sum of `n_valid`. Entries of weight 0 count as zero even where their loss is not a number.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from algoperf_torch.kernels import registry
from algoperf_torch.kernels.cross_entropy import cross_entropy
from algoperf_torch.spec import LossOutput


def weighted_loss(per_example: Tensor, weights: Tensor | None = None) -> LossOutput:
    """Sum, valid count and masked values of losses; `n_valid` is the sum of the weights, or the number of losses."""
    if weights is None:
        return LossOutput(per_example.sum(), per_example.new_full((), per_example.numel()), per_example)
    weights = weights.to(per_example.dtype)
    per_example = per_example.masked_fill(weights == 0, 0.0) * weights
    return LossOutput(per_example.sum(), weights.sum(), per_example)


def softmax_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> LossOutput:
    """Cross entropy over the last dimension of `logits` [..., classes].

    Args:
        targets: class indices [...], or one row of probabilities for each example [..., classes].
        weights: [...].
        label_smoothing: e turns a target distribution t into (1 - e) t + e / classes.
    """
    num_classes = logits.shape[-1]
    soft = targets.dim() == logits.dim()
    if not soft and registry.takes_path("cross_entropy", logits.device):
        counted = None if weights is None else (weights != 0).reshape(-1).to(torch.float32)
        rows = cross_entropy(logits.reshape(-1, num_classes), targets.reshape(-1).long(), counted, label_smoothing)
        return weighted_loss(rows.reshape(targets.shape), weights)
    losses = functional.cross_entropy(
        logits.reshape(-1, num_classes),
        targets.reshape(-1, num_classes) if soft else targets.reshape(-1).long(),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return weighted_loss(losses.reshape(logits.shape[:-1]), weights)


def sigmoid_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> LossOutput:
    """Binary cross entropy of every logit; `logits`, `targets` and `weights` have one shape, [batch, tasks].

    Label smoothing e turns a target y into (1 - e) y + e / tasks, as the reference does (not e / 2).
    """
    if weights is not None:
        targets = targets.masked_fill(weights == 0, 0.0)  # a missing label may be NaN
    targets = (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]
    return weighted_loss(functional.binary_cross_entropy_with_logits(logits, targets, reduction="none"), weights)


def mean_absolute_error(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> LossOutput:
    """Mean absolute difference over all dimensions but the first; `weights` [batch]."""
    return weighted_loss((outputs - targets).abs().flatten(1).mean(dim=1), weights)


def mean_squared_error(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> LossOutput:
    """Mean squared difference over all dimensions but the first; `weights` [batch]."""
    return weighted_loss((outputs - targets).square().flatten(1).mean(dim=1), weights)
