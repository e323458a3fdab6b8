"""Criteo 1TB: see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algoperf_torch.data.packed import PackedSplit
from algoperf_torch.spec import Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.criteo1tb.data import ClickStream, PieceOrder, to_batch
from algoperf_torch.workloads.criteo1tb.dlrm import Dlrm
from algoperf_torch.workloads.criteo1tb.prepare import PREPARATION
from algoperf_torch.workloads.losses import sigmoid_cross_entropy
from algoperf_torch.workloads.metrics import mean_metrics, sum_row

VARIANTS: dict[str, dict[str, Any]] = {
    "criteo1tb": {},
    "criteo1tb_layernorm": {"layer_norm": True},
    "criteo1tb_embed_init": {"init_scale": 1.0},
    "criteo1tb_resnet": {"residual": True, "bottom": (256, 256, 256), "top": (256, 256, 256, 256)},
}
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 1_024},
    "mini": {"batch_size": 512, "num_eval_train": 4_096},
}
SCALE_OPTIONS: dict[ModelScale, dict[str, Any]] = {  # how the model differs at a scale
    "full": {},
    "test": {"num_rows": 4_096, "embedding_width": 32},
    "mini": {"num_rows": 8_192, "embedding_width": 16},
}
MLPS: dict[ModelScale, tuple[dict[str, Any], dict[str, Any]]] = {  # without skip connections, with them
    "full": ({}, {}),
    "test": ({"bottom": (64, 32), "top": (64, 32, 32)}, {"bottom": (32, 32), "top": (32, 32, 32)}),
    "mini": ({"bottom": (64, 32, 16), "top": (128, 128, 64, 32)}, {"bottom": (32, 32, 32), "top": (32, 32, 32, 32)}),
}
# In lines; the reference's evaluation batch of 8,192 is a matter of its memory.
EVAL_CHUNKS: dict[ModelScale, int] = {"full": 32_768, "test": 32_768, "mini": 4_096}


class CriteoWorkload(Workload):
    """Click logits [batch, 1] against labels [batch, 1]; the metric is the mean loss over the split."""

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.spec = replace(spec, **SCALE_SPEC[model_scale])
        self._splits: dict[Split, PackedSplit] = {}
        self._piece_lines = 0

    def model_options(self) -> dict[str, Any]:
        options = {**VARIANTS[self.spec.name], "dropout": self.spec.default_dropout}
        return options | SCALE_OPTIONS[self.model_scale] | MLPS[self.model_scale][bool(options.get("residual"))]

    def build_model(self) -> Dlrm:
        return Dlrm(**self.model_options())

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:  # noqa: ARG002
        """Loss per example [batch]. Label smoothing is accepted and ignored, as in the reference."""
        weights = batch.get("weights")
        if weights is not None:
            weights = weights.reshape(-1)
        return sigmoid_cross_entropy(outputs.reshape(-1), batch["targets"].reshape(-1), weights)

    # ---------------------------------------------------------------- data

    def open(self) -> None:
        if not self._splits:
            packed = self.open_packed(preparation=PREPARATION)
            self._piece_lines = packed.facts["piece_lines"]
            self._splits = {split: packed.split(split) for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)}

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        pieces = PieceOrder(self._splits[Split.TRAIN], self._piece_lines)
        return ClickStream(pieces, self.spec.num_train, global_batch_size, seed=seed, rank=rank, world_size=world_size)

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        if split is Split.EVAL_TRAIN:  # a run of shuffled pieces, as in training, but of another draw
            pieces = PieceOrder(self._splits[Split.TRAIN], self._piece_lines)
            inputs, labels = pieces.lines(start, stop, seed=seed, epoch=2**63)
        else:
            stored = self._splits[split]
            inputs, labels = stored.read("inputs", start, stop), stored.read("labels", start, stop)
        return {**to_batch(inputs, labels), "weights": torch.ones(stop - start, 1)}

    def chunk_size(self, eval_batch_size: int | None = None) -> int:
        return super().chunk_size(eval_batch_size or EVAL_CHUNKS[self.model_scale] * self.eval_chunks_per_batch)

    # ---------------------------------------------------------------- metrics

    def metric_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        loss = self.loss(outputs, batch)
        return sum_row(loss.per_example, loss.n_valid)

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:
        return mean_metrics(sums, ("loss",), self.spec.num_examples(split))


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> CriteoWorkload:
    return CriteoWorkload(spec, data_dir=data_dir, model_scale=model_scale)
