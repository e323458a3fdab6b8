"""ResNet-50, version 1.5: the stride sits on the 3x3 convolution (He et al., 2015, arXiv:1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from algoperf_torch.workloads.layers import ACTIVATIONS, BatchNorm, truncated_normal_
from algoperf_torch.workloads.roles import mark_output

EXPANSION = 4  # outer width of a bottleneck over its inner width


def convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class Bottleneck(nn.Module):
    """1x1 to the inner width, 3x3 with the stride, 1x1 to the outer width, plus the shortcut."""

    def __init__(self, in_channels: int, inner: int, stride: int, activation: str, *, project: bool) -> None:
        super().__init__()
        outer = EXPANSION * inner
        self.conv1, self.bn1 = convolution(in_channels, inner, 1), BatchNorm(inner)
        self.conv2, self.bn2 = convolution(inner, inner, 3, stride), BatchNorm(inner)
        self.conv3, self.bn3 = convolution(inner, outer, 1), BatchNorm(outer)
        self.activation = ACTIVATIONS[activation]
        self.project = project
        if project:
            self.shortcut_conv, self.shortcut_bn = convolution(in_channels, outer, 1, stride), BatchNorm(outer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.activation(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.activation(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.project else x))


class ResNet(nn.Module):
    """Images [batch, 3, height, width] to logits [batch, num_classes].

    Args:
        stage_sizes: bottlenecks in each stage; the first of each has a projection shortcut.
        width: inner channels of the first stage; every stage doubles them.
        activation: a key of `ACTIVATIONS`.
        last_norm_scale: initial scale of the last batch norm of each bottleneck.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        num_classes: int = 1000,
        activation: str = "relu",
        last_norm_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem_conv, self.stem_bn = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), BatchNorm(width)
        self.activation = ACTIVATIONS[activation]
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        blocks, channels = [], width
        for stage, size in enumerate(stage_sizes):
            inner = width * 2**stage
            for block in range(size):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Bottleneck(channels, inner, stride, activation, project=block == 0))
                channels = EXPANSION * inner
        self.blocks = nn.Sequential(*blocks)
        self.head = mark_output(nn.Linear(channels, num_classes))
        self._initialise(last_norm_scale)

    def _initialise(self, last_norm_scale: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                truncated_normal_(module.weight)
        for block in self.blocks:
            nn.init.constant_(block.bn3.weight, last_norm_scale)  # type: ignore[union-attr, arg-type]
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.activation(self.stem_bn(self.stem_conv(x))))
        return self.head(self.blocks(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]
