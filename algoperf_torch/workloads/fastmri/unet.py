"""U-Net for MRI reconstruction (Ronneberger et al., 2015, arXiv:1505.04597; Zbontar et al., 2018, arXiv:1811.08839)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.workloads.layers import ACTIVATIONS, Dropout, truncated_normal_
from algoperf_torch.workloads.roles import mark_output


class InstanceNorm(nn.Module):
    """Every channel of every example to mean 0 and variance 1; no parameters, the same in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.instance_norm(x, eps=1e-5)


class ConvBlock(nn.Sequential):
    """Twice: 3x3 convolution, normalisation, activation, dropout of whole channels."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: str, dropout: float, *, layer_norm: bool
    ) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            norm = nn.GroupNorm(1, out_channels, eps=1e-6) if layer_norm else InstanceNorm()
            convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
            layers += [convolution, norm, Activation(activation), Dropout(dropout, whole_channels=True)]
        super().__init__(*layers)


class UpBlock(nn.Sequential):
    """Twice the size at half the channels: transposed 2x2 convolution, instance norm, activation."""

    def __init__(self, in_channels: int, out_channels: int, activation: str) -> None:
        convolution = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False)
        super().__init__(convolution, InstanceNorm(), Activation(activation))


class Activation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class UNet(nn.Module):
    """Images [batch, height, width] to images of the same size.

    Args:
        channels: of the first level; every level doubles them.
        num_levels: how often the image is halved.
        activation: a key of `ACTIVATIONS`.
        dropout: rate of the channel dropout in the convolution blocks.
        layer_norm: normalise over channels and pixels with a learned scale and bias in the convolution blocks.
    """

    def __init__(
        self,
        channels: int = 32,
        num_levels: int = 4,
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()

        def block(in_channels: int, out_channels: int) -> ConvBlock:
            return ConvBlock(in_channels, out_channels, activation, dropout, layer_norm=layer_norm)

        widths = [channels * 2**level for level in range(num_levels + 1)]
        self.down_convs = nn.ModuleList(block(i, o) for i, o in zip([1, *widths[:-2]], widths[:-1], strict=True))
        self.bottleneck_conv = block(widths[-2], widths[-1])
        self.upsample_convs = nn.ModuleList(UpBlock(2 * width, width, activation) for width in reversed(widths[:-1]))
        self.up_convs = nn.ModuleList(block(2 * width, width) for width in reversed(widths[:-1]))
        self.output_conv = mark_output(nn.Conv2d(channels, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                truncated_normal_(module.weight)
        nn.init.zeros_(self.output_conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        skips = []
        for block in self.down_convs:
            x = block(x)
            skips.append(x)
            x = functional.avg_pool2d(x, 2)
        x = self.bottleneck_conv(x)
        for upsample, block, skip in zip(self.upsample_convs, self.up_convs, reversed(skips), strict=True):
            x = upsample(x)
            missing = (0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2])  # 1 after an odd size
            if any(missing):
                x = functional.pad(x, missing, mode="reflect")
            x = block(torch.cat([x, skip], dim=1))
        return self.output_conv(x).squeeze(1)  # type: ignore[no-any-return]
