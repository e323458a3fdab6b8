"""WMT: see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algoperf_torch.data.sampler import subset
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.losses import softmax_cross_entropy
from algoperf_torch.workloads.metrics import accuracy_row, mean_metrics
from algoperf_torch.workloads.wmt.beam import beam_search
from algoperf_torch.workloads.wmt.bleu import NUM_SUMS, bleu_score, sentence_sums
from algoperf_torch.workloads.wmt.data import RowStream, fitting, load_pairs, padded
from algoperf_torch.workloads.wmt.packing import Index, Pairs
from algoperf_torch.workloads.wmt.prepare import PREPARATION, SYNTHETIC_VOCAB_SIZE
from algoperf_torch.workloads.wmt.tokenizer import EOS, VOCAB_SIZE, Tokenizer
from algoperf_torch.workloads.wmt.transformer import DecoderCache, Transformer

VARIANTS: dict[str, dict[str, Any]] = {
    "wmt": {},
    "wmt_post_ln": {"post_ln": True},
    "wmt_attention_temp": {"temperature": 4.0},
    "wmt_glu_tanh": {"glu": True},
}
BEAMS = 4
ALPHA = 0.6
MAX_LENGTH = 256
_SMALL = {"vocab_size": 512, "width": 64, "num_layers": 2, "num_heads": 4, "mlp_width": 64, "max_length": 64}
SCALE_OPTIONS: dict[ModelScale, dict[str, Any]] = {  # how the model differs at a scale
    "full": {},
    "test": _SMALL,
    "mini": _SMALL | {"vocab_size": SYNTHETIC_VOCAB_SIZE, "max_length": 32},
}
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 16, "eval_batch_size": 64},
    "mini": {"batch_size": 8, "eval_batch_size": 128, "num_eval_train": 128, "num_parameters": None},
}
EVALUATED: dict[ModelScale, int] = {
    "mini": 128
}  # sentences of an evaluation split at most, the first ones: beam search takes long


class TransformerDecoder:
    """A model and the cache of its incremental decoding, as beam search wants it."""

    def __init__(self, model: Transformer, inputs: Tensor, beams: int, max_length: int) -> None:
        self._model = model
        self._cache: DecoderCache = model.start_decoding(inputs, beams, max_length)
        self.reorder, self.keep = self._cache.reorder, self._cache.keep

    def step(self, tokens: Tensor, position: int) -> Tensor:
        return self._model.decode_step(tokens, position, self._cache)


class WmtWorkload(Workload):
    """Logits [batch, length, vocabulary] against target tokens; BLEU of beam search against detokenised targets."""

    eval_chunks_per_batch = 2

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(replace(spec, **SCALE_SPEC[model_scale]), data_dir=data_dir, model_scale=model_scale)
        self._tokenizer: Tokenizer | None = None
        self._pairs: dict[Split, Pairs] = {}
        self._usable: dict[Split, Index] = {}

    def model_options(self) -> dict[str, Any]:
        options = {**VARIANTS[self.spec.name], "dropout": self.spec.default_dropout}
        return options | SCALE_OPTIONS[self.model_scale]

    @property
    def max_length(self) -> int:
        return int(self.model_options().get("max_length", MAX_LENGTH))

    def build_model(self) -> Transformer:
        return Transformer(**self.model_options())

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        return model(
            batch["inputs"],
            batch["targets"],
            batch.get("inputs_position"),
            batch.get("targets_position"),
            batch.get("inputs_segmentation"),
            batch.get("targets_segmentation"),
        )

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        """Loss per token [batch, length]; the valid examples are the tokens of positive weight."""
        return softmax_cross_entropy(outputs, batch["targets"], batch.get("weights"), label_smoothing)

    # ---------------------------------------------------------------- data

    def open(self) -> None:
        if self._tokenizer is not None:
            return
        packed = self.open_packed(preparation=PREPARATION)
        vocab_size = self.model_options().get("vocab_size", VOCAB_SIZE)
        if packed.facts["vocab_size"] > vocab_size:
            raise DataError(
                f"{packed.folder} has a vocabulary of {packed.facts['vocab_size']:,} pieces, the model one of "
                f"{vocab_size:,}. Prepare the data with --set vocab_size={vocab_size}."
            )
        for split in (Split.TRAIN, Split.VALIDATION, Split.TEST):
            self._pairs[split] = load_pairs(packed, split)
            limit = None if split is Split.TRAIN else EVALUATED.get(self.model_scale)
            self._usable[split] = fitting(self._pairs[split], self.max_length)[:limit]
            if not len(self._usable[split]):
                raise DataError(f"{packed.folder}: no pair of the {split} split has at most {self.max_length} tokens.")
        train = len(self._usable[Split.TRAIN])
        self.spec = replace(
            self.spec,
            num_train=train,
            num_eval_train=min(self.spec.num_eval_train, train),
            num_validation=len(self._usable[Split.VALIDATION]),
            num_test=len(self._usable[Split.TEST]),
        )
        self._tokenizer = Tokenizer(packed.folder / "sentencepiece.model")

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        return RowStream(
            self._pairs[Split.TRAIN],
            self._usable[Split.TRAIN],
            self.max_length,
            global_batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        if split is Split.EVAL_TRAIN:
            usable = self._usable[Split.TRAIN]
            chosen = usable[subset(len(usable), self.spec.num_eval_train, seed=seed)[start:stop]]
            return padded(self._pairs[Split.TRAIN], chosen, self.max_length)
        return padded(self._pairs[split], self._usable[split][start:stop], self.max_length)

    # ---------------------------------------------------------------- metrics

    def metric_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Correct tokens, summed loss, tokens; then zeros for what `evaluate_chunk` adds by decoding."""
        sums = accuracy_row(outputs, batch["targets"], batch["weights"], self.loss(outputs, batch))
        return torch.cat([sums, sums.new_zeros(NUM_SUMS)])

    def evaluate_chunk(self, model: nn.Module, forward: Callable[[Batch], Any], batch: Batch) -> Tensor:
        assert isinstance(model, Transformer)
        row = self.metric_sums(forward(batch), batch)
        row[-NUM_SUMS:] = torch.tensor(self.bleu_sums(model, batch), dtype=row.dtype)
        return row

    def bleu_sums(self, model: Transformer, batch: Batch) -> list[int]:
        """What the sentences of a batch add to corpus BLEU. Rows of padding, whose first target has no weight, are skipped."""
        assert self._tokenizer is not None
        real = int((batch["weights"][:, 0] > 0).sum())
        if real == 0:
            return [0] * NUM_SUMS
        inputs, targets = batch["inputs"][:real], batch["targets"][:real]
        predictions = self.translate(model, inputs)
        ours, theirs = (self._tokenizer.decode(rows.cpu().numpy()) for rows in (predictions, targets))
        sums = [sentence_sums(*pair) for pair in zip(ours, theirs, strict=True)]
        return [int(total) for total in np.sum(sums, axis=0)]

    def translate(self, model: Transformer, inputs: Tensor) -> Tensor:
        """The best sequence of each source row, int64 [rows, max_length - 1]."""
        decoder = TransformerDecoder(model, inputs, BEAMS, self.max_length)
        beams = beam_search(
            decoder,
            len(inputs),
            beams=BEAMS,
            max_length=self.max_length,
            alpha=ALPHA,
            eos=EOS,
            device=inputs.device,
        )
        return beams.sequences[:, -1, 1:]

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:  # noqa: ARG002
        means = mean_metrics(sums[:, :-NUM_SUMS], ("accuracy", "loss"))
        return {**means, "bleu": bleu_score(sums[:, -NUM_SUMS:].sum(dim=0).tolist())}


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> WmtWorkload:
    return WmtWorkload(spec, data_dir=data_dir, model_scale=model_scale)
