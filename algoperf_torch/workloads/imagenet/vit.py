"""ViT-S/16 with mean pooling and a fixed position table (Beyer et al., 2022, arXiv:2205.01580)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.layers import Dropout, truncated_normal_
from algoperf_torch.workloads.roles import mark_output, mark_roles

LAYER_NORM_EPS = 1e-6


def position_table(height: int, width: int, dim: int) -> Tensor:
    """Sine-cosine table, float32 [height * width, dim]: sin and cos of the column, then of the row, a quarter each."""
    quarter = dim // 4
    omega = 1 / 10_000 ** (torch.arange(quarter, dtype=torch.float32) / (quarter - 1))
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [coordinate.flatten()[:, None].float() * omega for coordinate in (column, row)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)


def linear(in_features: int, out_features: int, bias_std: float = 0.0) -> nn.Linear:
    """A linear layer with Xavier-uniform weight and a bias of standard deviation `bias_std`."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.normal_(layer.bias, std=bias_std) if bias_std else nn.init.zeros_(layer.bias)
    return layer


def projection(in_features: int, out_features: int, role: ParamRole, bias_std: float = 0.0) -> nn.Linear:
    """A linear layer of an attention module."""
    return mark_roles(linear(in_features, out_features, bias_std), weight=role, bias=ParamRole.ATTENTION_BIAS)


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: Dropout) -> Tensor:
    """Attention of query [batch, n, dim] over key and value [batch, m, dim]; heads are contiguous parts of dim."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    if dropout.training:  # the fused operator takes its rate as a Python float, which would recompile
        probabilities = dropout(torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1))
        y = probabilities @ v
    else:
        y = functional.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2).flatten(-2)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = projection(dim, dim, ParamRole.ATTENTION_Q)
        self.key = projection(dim, dim, ParamRole.ATTENTION_K)
        self.value = projection(dim, dim, ParamRole.ATTENTION_V)
        self.out = projection(dim, dim, ParamRole.ATTENTION_OUT)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(self.query(x), self.key(x), self.value(x), self.num_heads, self.dropout))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two layers with GELU between. `gated` multiplies the activated hidden vector by a linear map of itself."""

    def __init__(self, dim: int, hidden: int, dropout: float, *, gated: bool = False) -> None:
        super().__init__()
        self.layer1, self.layer2 = linear(dim, hidden, bias_std=1e-6), linear(hidden, dim, bias_std=1e-6)
        self.gate = linear(hidden, hidden, bias_std=1e-6) if gated else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.layer1(x), approximate="tanh")
        if self.gate is not None:
            x = x * self.gate(x)
        return self.layer2(self.dropout(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each with a residual. With `post_norm`, layer norms follow the additions."""

    def __init__(
        self, dim: int, hidden: int, num_heads: int, dropout: float, *, gated: bool = False, post_norm: bool = False
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS), nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = SelfAttention(dim, num_heads, dropout)
        self.mlp = MLP(dim, hidden, dropout, gated=gated)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self.dropout(self.attention(x)))
            return self.norm2(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned probe attends over the tokens [batch, n, dim], then an MLP."""

    def __init__(self, dim: int, hidden: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.uniform_(self.probe, -((6 / (2 * dim)) ** 0.5), (6 / (2 * dim)) ** 0.5)
        self.query = projection(dim, dim, ParamRole.ATTENTION_Q, bias_std=1e-6)
        self.key_value = projection(dim, 2 * dim, ParamRole.ATTENTION_KV, bias_std=1e-6)
        self.out = projection(dim, dim, ParamRole.ATTENTION_OUT, bias_std=1e-6)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLP(dim, hidden, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(self.probe).expand(len(x), -1, -1)
        key, value = self.key_value(x).chunk(2, dim=-1)
        y = self.out(attend(query, key, value, self.num_heads, self.dropout)).squeeze(1)
        return y + self.mlp(self.norm(y))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Images [batch, 3, image_size, image_size] to logits [batch, num_classes].

    Args:
        dim, depth, num_heads, hidden: width, number of blocks, attention heads, inner width of the MLPs.
        dropout: one rate for all sites (positions, attention probabilities, attention, inside and after the MLP).
        gated: MLPs with a gate, at unchanged hidden width.
        post_norm: layer norm after each residual addition, and no final one.
        attention_pool: pool tokens by attention instead of their mean.
    """

    position: Tensor

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        hidden: int = 1536,
        image_size: int = 224,
        patch_size: int = 16,
        num_classes: int = 1000,
        dropout: float = 0.0,
        *,
        gated: bool = False,
        post_norm: bool = False,
        attention_pool: bool = False,
    ) -> None:
        super().__init__()
        self.patch_conv = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        side = image_size // patch_size
        self.register_buffer("position", position_table(side, side, dim), persistent=False)
        self.dropout = Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(dim, hidden, num_heads, dropout, gated=gated, post_norm=post_norm) for _ in range(depth))
        )
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pool = AttentionPool(dim, hidden, num_heads, dropout) if attention_pool else None
        self.pre_logits, self.head = nn.Linear(dim, dim), mark_output(nn.Linear(dim, num_classes))
        for layer in (self.patch_conv, self.pre_logits):
            truncated_normal_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_conv(x).flatten(2).transpose(1, 2)  # [batch, tokens, dim]
        x = self.norm(self.blocks(self.dropout(x + self.position)))
        x = x.mean(dim=1) if self.pool is None else self.pool(x)
        return self.head(torch.tanh(self.pre_logits(x)))  # type: ignore[no-any-return]
