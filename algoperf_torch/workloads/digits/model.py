"""A small convolutional network for images of 8 x 8 pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.workloads.layers import BatchNorm, Dropout, truncated_normal_
from algoperf_torch.workloads.roles import mark_output


class DigitsNet(nn.Module):
    """Two convolutions with batch norm, a hidden layer with dropout, the output layer.

    Images [batch, 1, 8, 8] to logits [batch, classes].
    """

    def __init__(self, dropout: float, *, width: int = 16, hidden: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), BatchNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), BatchNorm(2 * width)
        self.hidden = nn.Linear(2 * width * 2 * 2, hidden)
        self.dropout = Dropout(dropout)
        self.head = mark_output(nn.Linear(hidden, num_classes))
        for layer in (self.conv1, self.conv2, self.hidden, self.head):
            truncated_normal_(layer.weight)
        for linear in (self.hidden, self.head):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))  # [batch, width, 8, 8]
        x = functional.relu(self.bn2(self.conv2(x)))  # [batch, 2 width, 4, 4]
        x = functional.max_pool2d(x, 2).flatten(1)
        x = self.dropout(functional.relu(self.hidden(x)))
        return self.head(x)  # type: ignore[no-any-return]
