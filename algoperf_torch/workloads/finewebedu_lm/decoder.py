"""Decoder-only language model: rotary positions, normalised queries and keys, gated MLP, tied embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.roles import mark_output, mark_roles

NORM_EPS = 1e-6
ROPE_BASE = 500_000.0
INIT_STD = 0.02
MLP_MULTIPLE = 256  # the hidden width of the MLP is rounded up to a multiple of this


def rotary_table(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [length, head_width / 2], of the angles p * base^(-2i / head_width)."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of adjacent components (2i, 2i + 1) of [..., L, head_width] by its angle."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned: Tensor = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return turned


def normalise(x: Tensor) -> Tensor:
    """x over its L2 norm, with the epsilon added to the quotient, not to the norm."""
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit + NORM_EPS


class CausalAttention(nn.Module):
    """Causal attention whose scores are cosines times one learned scalar (Henry et al., 2020, arXiv:2010.04245)."""

    def __init__(self, width: int, num_heads: int, context: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = mark_roles(nn.Linear(width, 3 * width, bias=False), weight=ParamRole.ATTENTION_QKV)
        self.out_proj = mark_roles(nn.Linear(width, width, bias=False), weight=ParamRole.ATTENTION_OUT)
        self.scale = nn.Parameter(torch.tensor(math.log2(context**2 - context)))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1)
        )
        query = normalise(rotate(query, cos, sin)) * self.scale
        key = normalise(rotate(key, cos, sin))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class GatedMlp(nn.Module):
    """W2 (a * sigmoid(b)) with [a, b] = W1 x."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = MLP_MULTIPLE * -(-hidden // MLP_MULTIPLE)
        self.linear1 = nn.Linear(width, 2 * hidden, bias=False)
        self.linear2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(functional.glu(self.linear1(x), dim=-1))
        return out


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp_width: int, context: int) -> None:
        super().__init__()
        self.attn = CausalAttention(width, num_heads, context)
        self.mlp = GatedMlp(width, mlp_width)
        self.norm1 = nn.RMSNorm(width, eps=NORM_EPS)
        self.norm2 = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cos, sin)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class LanguageModel(nn.Module):
    """Logits [batch, length, vocab_size] of the next token, from tokens [batch, length], length <= context."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        *,
        vocab_size: int = 50_257,
        width: int = 1024,
        num_layers: int = 12,
        num_heads: int = 8,
        mlp_width: int = 4096,
        context: int = 1024,
    ) -> None:
        super().__init__()
        self.embedding = mark_output(nn.Embedding(vocab_size, width))
        self.layers = nn.ModuleList(Block(width, num_heads, mlp_width, context) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        cos, sin = rotary_table(context, width // num_heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices N(0, 0.02), those that close a residual branch N(0, 0.02 / sqrt(2 * num_layers))."""
        closing_std = INIT_STD / math.sqrt(2 * len(self.layers))
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        for layer in self.layers:
            assert isinstance(layer, Block)
            nn.init.normal_(layer.attn.in_proj.weight, std=INIT_STD)
            nn.init.normal_(layer.attn.out_proj.weight, std=closing_std)
            nn.init.normal_(layer.mlp.linear1.weight, std=INIT_STD)
            nn.init.normal_(layer.mlp.linear2.weight, std=closing_std)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return functional.linear(self.norm(x), self.embedding.weight)
