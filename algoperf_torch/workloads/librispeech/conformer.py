"""Conformer encoder for speech recognition (Gulati et al., 2020, arXiv:2005.08100)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.layers import ACTIVATIONS, Dropout
from algoperf_torch.workloads.librispeech.features import LogMel, SpecAugment
from algoperf_torch.workloads.librispeech.layers import LayerNorm, MaskedBatchNorm, Subsampling, linear, xavier
from algoperf_torch.workloads.roles import mark_output, mark_roles

KERNEL_SIZE = 5  # frames


def positional_signal(length: int, dim: int) -> Tensor:
    """float32 [length, dim]: sines of `dim / 2` wavelengths, then their cosines."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10_000) / (half - 1)))
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class FeedForward(nn.Module):
    """Layer norm, two linear layers with an activation between, dropout; padded frames are masked before each one."""

    def __init__(self, dim: int, hidden: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.layer1, self.layer2 = linear(dim, hidden), linear(hidden, dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        x = self.activation(self.layer1(self.norm(x))) * valid
        return self.dropout(self.layer2(x) * valid)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention over valid frames; every query channel has a learned scale, shared by the heads."""

    def __init__(self, dim: int, num_heads: int, temperature: float, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.temperature = num_heads, temperature
        self.norm = LayerNorm(dim)
        roles = {"bias": ParamRole.ATTENTION_BIAS}
        self.in_proj = mark_roles(linear(dim, 3 * dim), weight=ParamRole.ATTENTION_QKV, **roles)
        self.out = mark_roles(linear(dim, dim), weight=ParamRole.ATTENTION_OUT, **roles)
        self.channel_scale = nn.Parameter(torch.zeros(dim // num_heads))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [batch, heads, frames, dim / heads]
            for part in self.in_proj(self.norm(x)).chunk(3, dim=-1)
        )
        query = query * (functional.softplus(self.channel_scale) / math.log(2))
        keys = (valid > 0).transpose(1, 2).unsqueeze(1)  # [batch, 1, 1, frames]
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        return self.dropout(self.out(y.transpose(1, 2).flatten(-2) * self.temperature))  # type: ignore[no-any-return]


class ConvolutionModule(nn.Module):
    """Gated linear unit, depthwise convolution over time, batch norm, activation, linear layer, dropout."""

    def __init__(self, dim: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.input, self.gate, self.output = linear(dim, dim), linear(dim, dim), linear(dim, dim)
        for pointwise in (self.input, self.gate, self.output):  # convolutions of kernel size 1
            mark_roles(pointwise, weight=ParamRole.CONV_WEIGHT)
        self.depthwise = nn.Conv1d(dim, dim, KERNEL_SIZE, padding=KERNEL_SIZE // 2, groups=dim, bias=False)
        xavier(self.depthwise)
        self.bn = MaskedBatchNorm(dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, paddings: Tensor, valid: Tensor) -> Tensor:
        x = self.norm(x)
        x = self.input(x) * torch.sigmoid(self.gate(x)) * valid
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        x = self.activation(self.bn(x, paddings))
        return self.dropout(self.output(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(
        self, dim: int, num_heads: int, activation: str, temperature: float, dropout: float, *, final_norm: bool
    ) -> None:
        super().__init__()
        convolution_activation, feed_forward_activation = (
            ("gelu", "gelu_tanh") if activation == "gelu" else (activation,) * 2
        )
        self.feed_forward1 = FeedForward(dim, 4 * dim, feed_forward_activation, dropout)
        self.attention = SelfAttention(dim, num_heads, temperature, dropout)
        self.convolution = ConvolutionModule(dim, convolution_activation, dropout)
        self.feed_forward2 = FeedForward(dim, 4 * dim, feed_forward_activation, dropout)
        self.norm = LayerNorm(dim) if final_norm else nn.Identity()

    def forward(self, x: Tensor, paddings: Tensor) -> Tensor:
        valid = (1 - paddings).unsqueeze(-1)  # [batch, frames, 1]
        x = x + 0.5 * self.feed_forward1(x, valid)
        x = x + self.attention(x, valid)
        x = x + self.convolution(x, paddings, valid)
        x = x + 0.5 * self.feed_forward2(x, valid)
        return self.norm(x)  # type: ignore[no-any-return]


class Conformer(nn.Module):
    """Audio and its paddings [batch, samples] to logits [batch, frames, vocabulary] and paddings [batch, frames].

    Args:
        dim, depth, num_heads: width, number of blocks, attention heads.
        activation: a key of `ACTIVATIONS`, for feed-forward and convolution modules. "gelu" is exact in the latter and
            the tanh approximation in the former.
        attention_temperature: factor on the attention output, before its projection.
        block_norm: layer norm at the end of every block.
        spec_augment: whether features are masked in training mode.
        max_frames: longest input after subsampling, at a quarter of the feature rate.
    """

    position: Tensor

    def __init__(
        self,
        dim: int = 512,
        depth: int = 4,
        num_heads: int = 8,
        vocabulary_size: int = 1024,
        dropout: float = 0.1,
        activation: str = "silu",
        attention_temperature: float = 1.0,
        max_frames: int = 500,
        *,
        block_norm: bool = True,
        spec_augment: bool = True,
    ) -> None:
        super().__init__()
        self.features = LogMel()
        self.spec_augment = SpecAugment(num_time_masks=10, num_frequency_masks=2) if spec_augment else None
        self.subsampling = Subsampling(dim)
        self.register_buffer("position", positional_signal(max_frames, dim), persistent=False)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, activation, attention_temperature, dropout, final_norm=block_norm)
            for _ in range(depth)
        )
        self.norm = LayerNorm(dim)
        self.output = mark_output(linear(dim, vocabulary_size))

    def forward(self, audio: Tensor, paddings: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`draws`: the random numbers of `SpecAugment`, used in training mode."""
        masks: tuple[Tensor, ...] = ()
        if self.training and self.spec_augment is not None:
            masks = self.spec_augment(paddings, draws)
        x, paddings = self.features(audio, paddings, *masks)
        x, paddings = self.subsampling(x, paddings)
        x = self.dropout(x + self.position[: x.shape[1]])
        for block in self.blocks:
            x = block(x, paddings)
        return self.output(self.norm(x)), paddings
