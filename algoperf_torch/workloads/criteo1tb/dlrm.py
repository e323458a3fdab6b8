"""DLRM-small: click rates from 13 numbers and 26 hashed categories (Naumov et al., 2019, arXiv:1906.00091)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.kernels import registry
from algoperf_torch.kernels.dot_interaction import dot_interaction
from algoperf_torch.kernels.embedding import gather_rows
from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.criteo1tb.records import NUM_CATEGORICAL, NUM_DENSE
from algoperf_torch.workloads.layers import Dropout
from algoperf_torch.workloads.roles import mark_output, mark_roles

NUM_TABLE_PARTS = 4
LAYER_NORM_EPS = 1e-6


class HashedEmbedding(nn.Module):
    """One table for all categorical columns: row `id % num_rows`. Columns share rows; there is no offset per column.

    The table is held as four parameters of `num_rows / 4` rows each, as the benchmark fixes it. Each part is looked up
    at the same local row and the right result picked: no copy of the whole table (2.1 GB at full size) is made.
    """

    def __init__(self, num_rows: int, width: int, init_scale: float) -> None:
        super().__init__()
        if num_rows % NUM_TABLE_PARTS:
            raise ValueError(f"The embedding table has {num_rows} rows, not divisible by {NUM_TABLE_PARTS}.")
        self.num_rows = num_rows
        self.init_scale = init_scale
        part_rows = num_rows // NUM_TABLE_PARTS
        parts = nn.ParameterList(nn.Parameter(torch.empty(part_rows, width)) for _ in range(NUM_TABLE_PARTS))
        self.parts = mark_roles(parts, **{str(index): ParamRole.EMBEDDING for index in range(NUM_TABLE_PARTS)})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for part in self.parts:
            nn.init.uniform_(part, 0.0, self.init_scale)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] integers -> [..., width]."""
        part_rows = self.num_rows // NUM_TABLE_PARTS
        row = ids % self.num_rows
        if registry.takes_path("gather_rows", ids.device):
            return gather_rows(row, list(self.parts))  # type: ignore[no-any-return]
        local, owner = row % part_rows, (row // part_rows).unsqueeze(-1)
        find = functional.embedding if ids.is_cuda else look_up
        embedded = find(local, self.parts[0])
        for index in range(1, NUM_TABLE_PARTS):
            embedded = torch.where(owner == index, find(local, self.parts[index]), embedded)
        return embedded


# The gradient of `functional.embedding`, as the compiler would make it on a CPU, takes a tenth longer to fill the table,
# gigabytes of zeros. So look-up and gradient are operators that it does not look into.


@torch.library.custom_op("algoperf::look_up", mutates_args=())
def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """Rows [*ids.shape, width] of a table [rows, width]."""
    return functional.embedding(ids, table)


@torch.library.custom_op("algoperf::look_up_backward", mutates_args=())
def look_up_backward(grad: Tensor, ids: Tensor, rows: int) -> Tensor:
    """Gradient [rows, width] of the table."""
    return torch.ops.aten.embedding_dense_backward(grad, ids, rows, -1, False)  # type: ignore[no-any-return]


@look_up.register_fake
def _(ids: Tensor, table: Tensor) -> Tensor:
    return table.new_empty(*ids.shape, table.shape[1])


@look_up_backward.register_fake
def _(grad: Tensor, ids: Tensor, rows: int) -> Tensor:  # noqa: ARG001
    return grad.new_empty(rows, grad.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ids, table = inputs
    ctx.save_for_backward(ids)
    ctx.rows = len(table)


def _backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
    (ids,) = ctx.saved_tensors
    return None, look_up_backward(grad, ids, ctx.rows)


look_up.register_autograd(_backward, setup_context=_keep)


class Block(nn.Module):
    """Linear, ReLU, optional LayerNorm, optional dropout, optional skip connection around all of it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        layer_norm: bool = False,
        dropout: float | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, out_features), nn.ReLU())
        if layer_norm:
            self.layers.append(nn.LayerNorm(out_features, eps=LAYER_NORM_EPS))
        if dropout is not None:
            self.layers.append(Dropout(dropout))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Dlrm(nn.Module):
    """Click logits [batch, 1] from inputs [batch, 39]: 13 numbers, then 26 category ids as floats.

    Args:
        num_rows: rows of the embedding table.
        embedding_width: width of a row; the last width of `bottom` where `residual` is off.
        bottom, top: widths of the hidden layers of the two MLPs; the output layer (width 1) comes on top.
        residual: skip connections between layers of equal width, and the plain concatenation of the bottom output and
            all embeddings in place of their pairwise products.
        layer_norm: LayerNorm after every hidden layer, and one over each embedding.
        init_scale: table entries start in U(0, init_scale); by default 1/sqrt(num_rows).
        dropout: rate before the output layer.
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        num_rows: int = 4_194_304,
        embedding_width: int = 128,
        bottom: Sequence[int] = (512, 256, 128),
        top: Sequence[int] = (1024, 1024, 512, 256),
        residual: bool = False,
        layer_norm: bool = False,
        init_scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.embedding = HashedEmbedding(
            num_rows, embedding_width, 1.0 / math.sqrt(num_rows) if init_scale is None else init_scale
        )
        self.embedding_norm = nn.LayerNorm(embedding_width, eps=LAYER_NORM_EPS) if layer_norm else nn.Identity()

        widths = [NUM_DENSE, *bottom]
        self.bottom = nn.Sequential(
            *(
                Block(widths[i], widths[i + 1], layer_norm=layer_norm, residual=residual and i > 0)
                for i in range(len(bottom))
            )
        )

        num_vectors = NUM_CATEGORICAL + 1
        if residual:
            interaction_width = bottom[-1] + NUM_CATEGORICAL * embedding_width
        else:
            interaction_width = bottom[-1] + num_vectors * (num_vectors + 1) // 2
            rows, columns = torch.triu_indices(num_vectors, num_vectors)  # upper triangle with the diagonal, row by row
            self.register_buffer("pairs", rows * num_vectors + columns, persistent=False)
        widths = [interaction_width, *top]
        last = len(top) - 1
        self.top = nn.Sequential(
            *(
                Block(
                    widths[i],
                    widths[i + 1],
                    layer_norm=layer_norm,
                    dropout=dropout if i == last else None,
                    residual=residual and i > 0,
                )
                for i in range(len(top))
            )
        )
        self.output = mark_output(nn.Linear(top[-1], 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Bottom weights Glorot uniform, top weights Glorot normal, biases N(0, 1/sqrt(out)) in both."""
        for mlp, init in ((self.bottom, nn.init.xavier_uniform_), (self.top, nn.init.xavier_normal_)):
            for module in mlp.modules():
                if isinstance(module, nn.Linear):
                    init(module.weight)
                    nn.init.normal_(module.bias, std=math.sqrt(1.0 / module.out_features))
        nn.init.xavier_normal_(self.output.weight)
        nn.init.normal_(self.output.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        dense, categorical = inputs.split((NUM_DENSE, NUM_CATEGORICAL), dim=1)
        x = self.bottom(dense)
        embedded = self.embedding_norm(self.embedding(categorical.long()))  # [batch, 26, width]
        if self.residual:
            features = embedded.flatten(1)
        else:
            vectors = torch.cat([x.unsqueeze(1), embedded], dim=1)  # [batch, 27, width]
            if registry.takes_path("dot_interaction", vectors.device):
                features = dot_interaction(vectors)
            else:
                features = torch.bmm(vectors, vectors.mT).flatten(1).index_select(1, self.pairs)
        logits: Tensor = self.output(self.top(torch.cat([x, features], dim=1)))
        return logits
