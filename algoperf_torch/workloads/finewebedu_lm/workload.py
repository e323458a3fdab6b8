"""FineWeb-Edu: see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algoperf_torch.data.sampler import EpochSampler
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.finewebedu_lm.decoder import LanguageModel
from algoperf_torch.workloads.finewebedu_lm.prepare import PREPARATION
from algoperf_torch.workloads.losses import softmax_cross_entropy
from algoperf_torch.workloads.metrics import mean_metrics, sum_row

CONTEXT = 1_024
VOCAB_SIZE = 50_257
EVAL_BATCHES = {Split.EVAL_TRAIN: 40, Split.VALIDATION: 391}  # of 256 windows, from the beginning of a split
MINI_EVAL_BATCHES = {Split.EVAL_TRAIN: 1, Split.VALIDATION: 2}
WINDOWS_PER_EVAL_BATCH = 256
TINY = {"vocab_size": 512, "width": 64, "num_layers": 2, "num_heads": 2, "mlp_width": 256, "context": 64}
SCALE_OPTIONS: dict[ModelScale, dict[str, Any]] = {
    "full": {},
    "test": TINY,
    "mini": TINY,
}  # how the model differs at a scale
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 16},
    "mini": {"batch_size": 16},
}


class LanguageModelWorkload(Workload):
    """Logits [batch, length, vocabulary] of the next token; the metric is perplexity."""

    eval_chunks_per_batch = 32  # the logits of 8 windows take 1.6 GB

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.spec = replace(spec, **SCALE_SPEC[model_scale])
        self._windows: dict[Split, NDArray[np.uint16]] = {}

    def model_options(self) -> dict[str, Any]:
        return SCALE_OPTIONS[self.model_scale]

    def build_model(self) -> LanguageModel:
        return LanguageModel(**self.model_options())

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        """Loss per token [batch, length]; all tokens are valid where the batch has no weights."""
        return softmax_cross_entropy(outputs, batch["targets"], batch.get("weights"), label_smoothing)

    # ---------------------------------------------------------------- data

    def open(self) -> None:
        if self._windows:
            return
        packed = self.open_packed(preparation=PREPARATION)
        options = self.model_options()
        vocab_size = options.get("vocab_size", VOCAB_SIZE)
        if packed.facts["vocab_size"] > vocab_size:
            raise DataError(
                f"{packed.folder} was made with a tokenizer of {packed.facts['vocab_size']:,} tokens, the model has "
                f"{vocab_size:,}. Prepare the data with a smaller one."
            )
        length = options.get("context", CONTEXT) + 1
        for split in (Split.TRAIN, Split.VALIDATION):
            (part,) = packed.split(split).parts
            tokens = np.asarray(part.array("windows")).reshape(-1)
            self._windows[split] = tokens[: len(tokens) // length * length].reshape(-1, length)
        self._windows[Split.EVAL_TRAIN] = self._windows[Split.TRAIN]
        counts = {
            split: min(len(self._windows[split]), batches * WINDOWS_PER_EVAL_BATCH)
            for split, batches in (MINI_EVAL_BATCHES if self.model_scale == "mini" else EVAL_BATCHES).items()
        }
        self.spec = replace(
            self.spec,
            num_train=len(self._windows[Split.TRAIN]),
            num_eval_train=counts[Split.EVAL_TRAIN],
            num_validation=counts[Split.VALIDATION],
        )

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        windows = self._windows[Split.TRAIN]
        sampler = EpochSampler(len(windows), global_batch_size, seed=seed, rank=rank, world_size=world_size)
        return lambda draw: to_batch(windows[sampler.indices(draw)])

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:  # noqa: ARG002
        """The first windows of a split, always the same."""
        batch = to_batch(self._windows[split][start:stop])
        return {**batch, "weights": torch.ones(batch["inputs"].shape)}

    # ---------------------------------------------------------------- metrics

    def metric_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        loss = self.loss(outputs, batch)
        return sum_row(loss.per_example, batch["weights"])

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:
        tokens = self.spec.num_examples(split) * self.model_options().get("context", CONTEXT)
        (loss,) = mean_metrics(sums, ("loss",), tokens).values()
        return {
            "loss": loss,
            "ppl": float(torch.tensor(loss, dtype=torch.float64).exp()),
        }  # infinity where it overflows


def to_batch(windows: NDArray[np.uint16]) -> Batch:
    """Inputs int32 and targets int64 [n, length] of windows of length + 1 tokens. Training batches have no weights."""
    return {
        "inputs": torch.from_numpy(windows[:, :-1].astype(np.int32)),
        "targets": torch.from_numpy(windows[:, 1:].astype(np.int64)),
    }


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> LanguageModelWorkload:
    return LanguageModelWorkload(spec, data_dir=data_dir, model_scale=model_scale)
