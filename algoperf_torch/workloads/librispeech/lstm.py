"""A bidirectional LSTM over sequences of different lengths, as an operator that the compiler does not look into.

`torch.compile` refuses `nn.LSTM`; this wraps the library's implementation. The library's intermediate results have a size
that only it knows, so the backward pass computes the forward pass again: for one layer that is a quarter of its time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

NUM_WEIGHTS = 4  # of one direction: input and hidden matrix, input and hidden bias


class BidirectionalLSTM(nn.Module):
    """[batch, frames, in_features] to [batch, frames, 2 hidden]: the forward direction's outputs, then the backward's.

    Gates are in the order input, forget, cell, output. Outputs after the end of a sequence are 0.
    """

    def __init__(self, in_features: int, hidden: int) -> None:
        super().__init__()
        for direction in ("forward", "backward"):
            for name, shape in (
                ("input_weight", (4 * hidden, in_features)),
                ("hidden_weight", (4 * hidden, hidden)),
                ("input_bias", (4 * hidden,)),
                ("hidden_bias", (4 * hidden,)),
            ):
                parameter = nn.Parameter(torch.empty(shape))
                nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)
                self.register_parameter(f"{direction}_{name}", parameter)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`lengths` int64 [batch], in host memory, at least 1."""
        return bidirectional_lstm(x, lengths, list(self.parameters()))  # type: ignore[no-any-return]


def run_library(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> Tensor:
    """The LSTM by the library's kernels, differentiable by its autograd formulas."""
    return _run_packed(x, lengths, weights) if x.is_cuda else _run_padded(x, lengths, weights)


def _run_packed(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    state = x.new_zeros(2, x.shape[0], weights[1].shape[1])
    result = torch.lstm(packed.data, packed.batch_sizes, (state, state), weights, True, 1, 0.0, x.requires_grad, True)
    outputs = torch.nn.utils.rnn.PackedSequence(
        result[0], packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
    )
    return pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0]


def _run_padded(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> Tensor:
    """On the CPU the library is five times faster on sequences of one length: run both directions from the start.

    The backward direction reads each sequence reversed within its length, so that its padding comes last, too.
    """
    position, length = torch.arange(x.shape[1]), lengths[:, None]
    reverse = torch.where(position < length, length - 1 - position, position)[..., None]  # its own inverse
    state = x.new_zeros(1, x.shape[0], weights[1].shape[1])

    def run(inputs: Tensor, direction: list[Tensor]) -> Tensor:
        return torch.lstm(inputs, (state, state), direction, True, 1, 0.0, x.requires_grad, False, True)[0]

    forward = run(x, weights[:NUM_WEIGHTS])
    backward = run(x.gather(1, reverse.expand_as(x)), weights[NUM_WEIGHTS:])
    backward = backward.gather(1, reverse.expand_as(backward))
    return torch.cat([forward, backward], dim=2) * (position < length)[..., None]


@torch.library.custom_op("algoperf::bidirectional_lstm", mutates_args=())
def bidirectional_lstm(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> Tensor:
    """`BidirectionalLSTM` as a function of the input, the lengths and its eight parameters."""
    return run_library(x, lengths, weights).contiguous()


@bidirectional_lstm.register_fake
def _(x: Tensor, lengths: Tensor, weights: list[Tensor]) -> Tensor:  # noqa: ARG001
    return x.new_empty(x.shape[0], x.shape[1], 2 * weights[1].shape[1])


# Not `custom_op`, inside which autograd is switched off: this one runs the library's own backward pass.
torch.library.define(
    "algoperf::bidirectional_lstm_backward", "(Tensor grad, Tensor x, Tensor lengths, Tensor[] weights) -> Tensor[]"
)


@torch.library.impl("algoperf::bidirectional_lstm_backward", ("cpu", "cuda"))
def bidirectional_lstm_backward(grad: Tensor, x: Tensor, lengths: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Gradients of the input and of the parameters."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights)]
        output = run_library(leaves[0], lengths, leaves[1:])
        return [gradient.contiguous() for gradient in torch.autograd.grad(output, leaves, grad)]


@torch.library.register_fake("algoperf::bidirectional_lstm_backward")
def _(grad: Tensor, x: Tensor, lengths: Tensor, weights: list[Tensor]) -> list[Tensor]:  # noqa: ARG001
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, *weights)]


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001, ARG001
    x, lengths, weights = inputs
    ctx.save_for_backward(x, lengths, *weights)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, None, list[Tensor]]:  # type: ignore[no-untyped-def] # noqa: ANN001
    x, lengths, *weights = ctx.saved_tensors
    grad_x, *grads = torch.ops.algoperf.bidirectional_lstm_backward(grad.contiguous(), x, lengths, weights)
    return grad_x, None, grads


bidirectional_lstm.register_autograd(_backward, setup_context=_setup_context)
