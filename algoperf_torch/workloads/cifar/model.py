"""ResNet-18 for images of 32 x 32 pixels: a 3x3 stem and no pooling before the stages (He et al., 2015, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.workloads.layers import BatchNorm, truncated_normal_
from algoperf_torch.workloads.roles import mark_output


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, plus the shortcut: projected where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(in_channels, channels, 3, stride), BatchNorm(channels)
        self.conv2, self.bn2 = convolution(channels, channels, 3), BatchNorm(channels)
        self.shortcut_conv: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut_conv = convolution(in_channels, channels, 1, stride)
            self.shortcut_bn = BatchNorm(channels)
        nn.init.zeros_(self.bn2.weight)  # a block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x if self.shortcut_conv is None else self.shortcut_bn(self.shortcut_conv(x))
        return functional.relu(y + shortcut)


class SmallResNet(nn.Module):
    """Images [batch, 3, 32, 32] to logits [batch, classes]; stage i has `width` x 2^i channels and two blocks."""

    def __init__(self, width: int = 64, num_stages: int = 4, num_classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = convolution(3, width, 3), BatchNorm(width)
        blocks, in_channels = [], width
        for stage in range(num_stages):
            channels = width * 2**stage
            blocks += [
                BasicBlock(in_channels, channels, stride=1 if stage == 0 else 2),
                BasicBlock(channels, channels, 1),
            ]
            in_channels = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = mark_output(nn.Linear(in_channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                truncated_normal_(module.weight)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn(self.conv(x))))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
