"""The CTC loss as an operator that the compiler does not look into, and greedy decoding.

The library's operator gives intermediate results whose size depends on the longest label sequence of the batch, which
breaks a compiled graph; here their size follows from the shapes alone. Label 0 is the blank.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLANK = 0


@torch.library.custom_op("algoperf::ctc", mutates_args=())
def ctc(log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the log-probability of each label sequence, and the forward variables for the backward pass.

    Args:
        log_probs: float [batch, frames, labels], normalised.
        targets: int64 [batch, longest].
        input_lengths, target_lengths: int64 [batch].

    Returns:
        [batch], infinite where the frames are too few for the labels; [batch, frames, 2 longest + 1].
    """
    losses, used = torch.ops.aten._ctc_loss(
        log_probs.transpose(0, 1), targets, input_lengths.tolist(), target_lengths.tolist(), BLANK, False
    )
    alphas = log_probs.new_zeros(*log_probs.shape[:2], 2 * targets.shape[1] + 1)
    alphas[:, : used.shape[1], : used.shape[2]] = used
    return losses, alphas


@ctc.register_fake
def _(log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    batch, frames, _ = log_probs.shape
    return log_probs.new_empty(batch), log_probs.new_empty(batch, frames, 2 * targets.shape[1] + 1)


@torch.library.custom_op("algoperf::ctc_backward", mutates_args=())
def ctc_backward(
    grad: Tensor,
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    losses: Tensor,
    alphas: Tensor,
) -> Tensor:
    """The gradient with respect to `log_probs`, given that of the losses."""
    longest = int(target_lengths.max())
    result: Tensor = torch.ops.aten._ctc_loss_backward(
        grad,
        log_probs.transpose(0, 1),
        targets,
        input_lengths.tolist(),
        target_lengths.tolist(),
        losses,
        alphas[:, :, : 2 * longest + 1].contiguous(),
        BLANK,
        False,
    )
    return result.transpose(0, 1).contiguous()


@ctc_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    log_probs: Tensor,
    targets: Tensor,  # noqa: ARG001
    input_lengths: Tensor,  # noqa: ARG001
    target_lengths: Tensor,  # noqa: ARG001
    losses: Tensor,  # noqa: ARG001
    alphas: Tensor,  # noqa: ARG001
) -> Tensor:
    return log_probs.new_empty(log_probs.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def] # noqa: ANN001
    return ctc_backward(grad.contiguous(), *ctx.saved_tensors), None, None, None


ctc.register_autograd(_backward, setup_context=_setup_context)


def greedy_decode(logits: Tensor, paddings: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely label of every frame, repeats merged, then blanks removed.

    Args:
        logits: [batch, frames, labels]; paddings: [batch, frames].

    Returns:
        int64 [batch, frames], left-justified and filled with 0, and the number of labels [batch].
    """
    best = logits.argmax(dim=-1).masked_fill(paddings > 0, BLANK)
    previous = torch.nn.functional.pad(best[:, :-1], (1, 0), value=BLANK)
    kept = (best != previous) & (best != BLANK)
    position = kept.cumsum(dim=1) - 1
    width = best.shape[1]
    slots = torch.where(kept, position, width)  # what is not kept goes to a slot past the end
    decoded = best.new_zeros(best.shape[0], width + 1).scatter_(1, slots, best)[:, :width]
    return decoded, kept.sum(dim=1)
