"""Encoder-decoder Transformer (Vaswani et al., 2017, arXiv:1706.03762); one embedding for source, target and output.

Shapes: B batch, S source length, T target length, D width, H heads. Token 0 is padding, and the unknown piece as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.layers import Dropout
from algoperf_torch.workloads.roles import mark_output, mark_roles

LAYER_NORM_EPS = 1e-6
MASKED = -1e10  # finite: a query without any allowed key averages all values


def position_table(length: int, width: int) -> Tensor:
    """float32 [length, width]: sines in the first half of the columns, cosines of the same angles in the second."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10_000.0) / (half - 1)))
    angles = torch.arange(length).unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def additive_mask(allowed: Tensor) -> Tensor:
    """bool [B, T, S] -> float32 [B, 1, T, S] to be added to attention scores."""
    return torch.where(allowed, 0.0, MASKED).unsqueeze(1)


class Attention(nn.Module):
    """Multi-head attention without biases; queries are multiplied by `temperature` and by 1/sqrt(head width)."""

    def __init__(self, width: int, num_heads: int, temperature: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = temperature / math.sqrt(width // num_heads)
        self.out_proj = mark_roles(nn.Linear(width, width, bias=False), weight=ParamRole.ATTENTION_OUT)
        self.dropout = Dropout(dropout)

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, H, L, D / H]."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """All by heads, [B, H, L, D / H] -> [B, L, D]. Dropout on the attention probabilities."""
        if self.training:
            scores = torch.matmul(query * self.scale, key.mT) + mask
            mixed = torch.matmul(self.dropout(scores.softmax(dim=-1)), value)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class SelfAttention(Attention):
    def __init__(self, width: int, num_heads: int, temperature: float, dropout: float) -> None:
        super().__init__(width, num_heads, temperature, dropout)
        self.in_proj = mark_roles(nn.Linear(width, 3 * width, bias=False), weight=ParamRole.ATTENTION_QKV)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self.split_heads(part) for part in self.in_proj(x).chunk(3, dim=-1))
        return self.attend(query, key, value, mask)


class CrossAttention(Attention):
    def __init__(self, width: int, num_heads: int, temperature: float, dropout: float) -> None:
        super().__init__(width, num_heads, temperature, dropout)
        self.q_proj = mark_roles(nn.Linear(width, width, bias=False), weight=ParamRole.ATTENTION_Q)
        self.kv_proj = mark_roles(nn.Linear(width, 2 * width, bias=False), weight=ParamRole.ATTENTION_KV)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, D] -> two of [B, H, S, D / H]."""
        key, value = self.kv_proj(memory).chunk(2, dim=-1)
        return self.split_heads(key), self.split_heads(value)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return self.attend(self.split_heads(self.q_proj(x)), *self.keys_values(memory), mask)


class FeedForward(nn.Module):
    """Linear, ReLU, dropout, Linear, dropout; or with `glu` tanh(W1 x + b1) * (Wg x + bg) in place of ReLU."""

    def __init__(self, width: int, hidden: int, glu: bool, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden) if glu else None
        self.linear2 = nn.Linear(hidden, width)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear1(x)
        hidden = functional.relu(hidden) if self.gate is None else torch.tanh(hidden) * self.gate(x)
        out: Tensor = self.dropout2(self.linear2(self.dropout1(hidden)))
        return out


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    width: int
    num_heads: int
    mlp_width: int
    post_ln: bool
    temperature: float
    glu: bool
    dropout: float


class EncoderLayer(nn.Module):
    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        width = options.width
        self.post_ln = options.post_ln
        self.self_attn = SelfAttention(width, options.num_heads, options.temperature, options.dropout)
        self.mlp = FeedForward(width, options.mlp_width, options.glu, options.dropout)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(options.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.post_ln:
            x = self.norm1(x + self.dropout(self.self_attn(x, mask)))
            x = self.norm2(x + self.mlp(x))
        else:
            x = x + self.dropout(self.self_attn(self.norm1(x), mask))
            x = x + self.mlp(self.norm2(x))
        return x


class DecoderLayer(nn.Module):
    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        width = options.width
        self.post_ln = options.post_ln
        self.self_attn = SelfAttention(width, options.num_heads, options.temperature, options.dropout)
        self.cross_attn = CrossAttention(width, options.num_heads, options.temperature, options.dropout)
        self.mlp = FeedForward(width, options.mlp_width, options.glu, options.dropout)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm3 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout1 = Dropout(options.dropout)
        self.dropout2 = Dropout(options.dropout)

    def forward(self, x: Tensor, memory: Tensor, self_mask: Tensor, cross_mask: Tensor) -> Tensor:
        if self.post_ln:
            x = self.norm1(x + self.dropout1(self.self_attn(x, self_mask)))
            x = self.norm2(x + self.dropout2(self.cross_attn(x, memory, cross_mask)))
            x = self.norm3(x + self.mlp(x))
        else:
            x = x + self.dropout1(self.self_attn(self.norm1(x), self_mask))
            x = x + self.dropout2(self.cross_attn(self.norm2(x), memory, cross_mask))
            x = x + self.mlp(self.norm3(x))
        return x

    def step(self, x: Tensor, cache: LayerCache, position: int, cross_mask: Tensor) -> Tensor:
        """One target position of every beam: x [B * beams, D] -> [B * beams, D]. Evaluation mode only."""
        if self.post_ln:
            x = self.norm1(x + self._self_attention_step(x, cache, position))
            x = self.norm2(x + self._cross_attention_step(x, cache, cross_mask))
            x = self.norm3(x + self.mlp(x))
        else:
            x = x + self._self_attention_step(self.norm1(x), cache, position)
            x = x + self._cross_attention_step(self.norm2(x), cache, cross_mask)
            x = x + self.mlp(self.norm3(x))
        return x

    def _cross_attention_step(self, y: Tensor, cache: LayerCache, cross_mask: Tensor) -> Tensor:
        """The beams of an item are so many queries to its one encoder output, which is never repeated."""
        attention = self.cross_attn
        query = attention.split_heads(
            attention.q_proj(y).view(cross_mask.shape[0], -1, y.shape[-1])
        )  # [B, H, beams, ..]
        return attention.attend(query, cache.memory_key, cache.memory_value, cross_mask).flatten(0, 1)

    def _self_attention_step(self, y: Tensor, cache: LayerCache, position: int) -> Tensor:
        attention = self.self_attn
        projected = attention.in_proj(y).unflatten(-1, (3, attention.num_heads, -1))  # [N, 3, H, D / H]
        cache.own[position].copy_(projected[:, 1:].transpose(0, 1))
        # [N, H, 1, D / H] against the positions written so far, [N, H, position + 1, D / H]
        keys, values = cache.own[: position + 1].permute(1, 2, 3, 0, 4)
        scores = torch.matmul(projected[:, 0].unsqueeze(2) * attention.scale, keys.mT)
        mixed = torch.matmul(scores.softmax(dim=-1), values)
        out: Tensor = attention.out_proj(mixed.flatten(1))
        return out


class LayerCache(NamedTuple):
    """What one decoder layer keeps between steps for N = B * beams rows."""

    own: Tensor  # [max_length, 2, N, H, D / H]: keys and values of self-attention
    memory_key: Tensor  # [B, H, S, D / H], of cross-attention
    memory_value: Tensor  # same


class DecoderCache:
    """State of incremental decoding. Positions come first in memory, so that those written so far are one block."""

    def __init__(self, own: Tensor, memory: list[tuple[Tensor, Tensor]], cross_mask: Tensor) -> None:
        self.own = own  # [max_length, layers, 2, N, H, D / H]
        self.memory = memory  # keys and values of every layer
        self.cross_mask = cross_mask  # [B, 1, 1, S]

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self.own[:, index], *self.memory[index])

    def reorder(self, rows: Tensor, length: int) -> None:
        """Row i becomes what row `rows[i]` was, over the first `length` positions."""
        written = self.own[:length]
        written.copy_(written.index_select(3, rows))

    def keep(self, items: Tensor) -> None:
        """Drops all items but the given ones, with their rows."""
        beams = self.own.shape[3] // self.cross_mask.shape[0]
        rows = (items.unsqueeze(1) * beams + torch.arange(beams, device=items.device)).flatten()
        self.own = self.own.index_select(3, rows)
        self.memory = [(key.index_select(0, items), value.index_select(0, items)) for key, value in self.memory]
        self.cross_mask = self.cross_mask.index_select(0, items)


class Transformer(nn.Module):
    """Logits [B, T, vocab_size] of the next target token, from source [B, S] and target [B, T] tokens.

    Args:
        post_ln: LayerNorm after the residual addition, and none at the ends of encoder and decoder.
        temperature: factor on the queries of all attention.
        glu: gated MLP, see `FeedForward`.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        vocab_size: int = 32_000,
        width: int = 1024,
        num_layers: int = 6,
        num_heads: int = 16,
        mlp_width: int = 1024,
        max_length: int = 256,
        post_ln: bool = False,
        temperature: float = 1.0,
        glu: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        options = LayerOptions(
            width=width,
            num_heads=num_heads,
            mlp_width=mlp_width,
            post_ln=post_ln,
            temperature=temperature,
            glu=glu,
            dropout=dropout,
        )
        self.width = width
        self.num_heads = num_heads
        self.max_length = max_length
        self.embedding = mark_output(nn.Embedding(vocab_size, width))
        self.register_buffer("positions", position_table(max_length, width), persistent=False)
        self.encoder_layers = nn.ModuleList(EncoderLayer(options) for _ in range(num_layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(options) for _ in range(num_layers))
        self.encoder_dropout = Dropout(dropout)
        self.decoder_dropout = Dropout(dropout)
        self.encoder_norm = nn.Identity() if post_ln else nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.decoder_norm = nn.Identity() if post_ln else nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform over each matrix as it is stored (fused ones too), biases N(0, 1e-6), embedding N(0, 1)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=1e-6)
        nn.init.normal_(self.embedding.weight)

    def embed(self, tokens: Tensor, position: Tensor | None, dropout: nn.Module) -> Tensor:
        places = (
            self.positions[: tokens.shape[1]] if position is None else functional.embedding(position, self.positions)
        )
        out: Tensor = dropout(self.embedding(tokens) + places)
        return out

    def logits(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.embedding.weight) / math.sqrt(self.width)

    def encode(self, inputs: Tensor, position: Tensor | None = None, segmentation: Tensor | None = None) -> Tensor:
        """[B, S] -> [B, S, D]."""
        real = inputs > 0
        allowed = real.unsqueeze(2) & real.unsqueeze(1)
        if segmentation is not None:
            allowed = allowed & (segmentation.unsqueeze(2) == segmentation.unsqueeze(1))
        mask = additive_mask(allowed)
        x = self.embed(inputs, position, self.encoder_dropout)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        out: Tensor = self.encoder_norm(x)
        return out

    def decode(
        self,
        memory: Tensor,
        inputs: Tensor,
        targets: Tensor,
        targets_position: Tensor | None = None,
        inputs_segmentation: Tensor | None = None,
        targets_segmentation: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab_size] by teacher forcing. Masks come from the targets before they are shifted."""
        real, length = targets > 0, targets.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=targets.device).tril()
        self_allowed = real.unsqueeze(2) & real.unsqueeze(1) & causal
        cross_allowed = real.unsqueeze(2) & (inputs > 0).unsqueeze(1)
        if targets_segmentation is not None and inputs_segmentation is not None:
            segment = targets_segmentation.unsqueeze(2)
            self_allowed = self_allowed & (segment == targets_segmentation.unsqueeze(1))
            cross_allowed = cross_allowed & (segment == inputs_segmentation.unsqueeze(1))
        self_mask, cross_mask = additive_mask(self_allowed), additive_mask(cross_allowed)
        shifted = functional.pad(targets[:, :-1], (1, 0))
        x = self.embed(shifted, targets_position, self.decoder_dropout)
        for layer in self.decoder_layers:
            x = layer(x, memory, self_mask, cross_mask)
        return self.logits(self.decoder_norm(x))

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        inputs_position: Tensor | None = None,
        targets_position: Tensor | None = None,
        inputs_segmentation: Tensor | None = None,
        targets_segmentation: Tensor | None = None,
    ) -> Tensor:
        memory = self.encode(inputs, inputs_position, inputs_segmentation)
        return self.decode(memory, inputs, targets, targets_position, inputs_segmentation, targets_segmentation)

    # ---------------------------------------------------------------- incremental decoding, in evaluation mode

    def start_decoding(self, inputs: Tensor, beams: int, max_length: int) -> DecoderCache:
        """Encodes [B, S] and makes room for `max_length` target positions of `beams` rows per item."""
        memory = self.encode(inputs)
        size = (
            max_length,
            len(self.decoder_layers),
            2,
            inputs.shape[0] * beams,
            self.num_heads,
            self.width // self.num_heads,
        )
        keys_values = [layer.cross_attn.keys_values(memory) for layer in self.decoder_layers]  # type: ignore[operator, union-attr]
        return DecoderCache(memory.new_empty(size), keys_values, additive_mask((inputs > 0).unsqueeze(1)))

    def decode_step(self, tokens: Tensor, position: int, cache: DecoderCache) -> Tensor:
        """Logits [B * beams, vocab_size] of the token after `tokens` [B * beams], which stand at `position`."""
        x = self.embedding(tokens) + self.positions[position]
        for index, layer in enumerate(self.decoder_layers):
            x = layer.step(x, cache.layer(index), position, cache.cross_mask)  # type: ignore[operator]
        return self.logits(self.decoder_norm(x))
