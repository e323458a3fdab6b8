"""One hidden layer of sigmoid units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algoperf_torch.workloads.mnist.data import NUM_CLASSES, SIDE
from algoperf_torch.workloads.roles import mark_output


class Perceptron(nn.Module):
    """Images [batch, 1, 28, 28] to logits [batch, 10]; both layers keep the initialisation of `nn.Linear`."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Linear(SIDE * SIDE, hidden)
        self.head = mark_output(nn.Linear(hidden, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]
