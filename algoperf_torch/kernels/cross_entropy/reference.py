"""Cross entropy of many rows over a large vocabulary, in plain PyTorch: the definition."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from algoperf_torch.kernels.arithmetic import computed


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(loss, log-sum-exp) of every row of `logits` [rows, classes], both [rows] and at least float32.

    With e the label smoothing, z the logits and y the target: loss = weight (lse - (1 - e) z_y - e mean z). Rows of weight
    0 have loss 0 whatever they hold, also an impossible target. `targets` are integers [rows], `weights` [rows].
    """
    (z,) = computed(logits)
    lse = z.logsumexp(dim=1)
    valid = None if weights is None else weights != 0
    chosen = targets if valid is None else targets.where(valid, 0)
    losses = functional.cross_entropy(z, chosen, reduction="none", label_smoothing=label_smoothing)
    if valid is not None and weights is not None:
        losses = losses.masked_fill(~valid, 0.0) * weights.to(losses)
    return losses, lse


def cross_entropy_backward(
    grad: Tensor, logits: Tensor, targets: Tensor, weights: Tensor | None, lse: Tensor, label_smoothing: float
) -> Tensor:
    """The gradient with respect to the logits: grad weight (softmax - (1 - e) [y] - e / classes), [rows, classes]."""
    classes = logits.shape[1]
    scale = grad if weights is None else grad * weights.to(grad)
    valid = scale != 0
    share = (logits.to(lse.dtype) - lse[:, None]).exp() - label_smoothing / classes
    hot = functional.one_hot(targets.where(valid, 0), classes).to(share)
    result = (share - (1 - label_smoothing) * hot) * scale[:, None]
    return result.masked_fill(~valid[:, None], 0.0).to(logits.dtype)
