"""LibriSpeech: speech to word pieces; see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from algoperf_torch.data.packed import Packed, PackedSplit
from algoperf_torch.data.sampler import EpochSampler, subset
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.librispeech.conformer import Conformer
from algoperf_torch.workloads.librispeech.ctc import ctc, greedy_decode
from algoperf_torch.workloads.librispeech.deepspeech import DeepSpeech
from algoperf_torch.workloads.librispeech.layers import MaskedBatchNorm
from algoperf_torch.workloads.librispeech.prepare import (
    MAX_SAMPLES,
    PREPARATION,
    TOKENIZER,
    VOCABULARY_SIZE,
    load_tokenizer,
)
from algoperf_torch.workloads.librispeech.wer import printed_tensor, word_errors
from algoperf_torch.workloads.losses import weighted_loss
from algoperf_torch.workloads.metrics import sum_row

MAX_TOKENS = 256

OPTIONS: dict[str, dict[str, Any]] = {  # how a variant's model differs
    "librispeech_conformer": {},
    "librispeech_conformer_attention_temperature": {"attention_temperature": 1.6},
    "librispeech_conformer_layernorm": {"block_norm": False},
    "librispeech_conformer_gelu": {"activation": "gelu"},
    "librispeech_deepspeech": {},
    "librispeech_deepspeech_tanh": {"activation": "tanh"},
    "librispeech_deepspeech_no_resnet": {"residual": False},
    "librispeech_deepspeech_norm_and_spec_aug": {"layer_norm": True, "num_time_masks": 15, "num_frequency_masks": 4},
}
SCALE_OPTIONS: dict[ModelScale, dict[str, dict[str, Any]]] = {  # how the model differs at a scale
    "full": {"librispeech_conformer": {}, "librispeech_deepspeech": {}},
    "test": {
        "librispeech_conformer": {"dim": 32, "depth": 1, "num_heads": 2},
        "librispeech_deepspeech": {"dim": 32, "num_recurrent": 2, "num_feed_forward": 1},
    },
    "mini": {
        "librispeech_conformer": {"dim": 64, "depth": 2, "num_heads": 4, "vocabulary_size": 96},
        "librispeech_deepspeech": {"dim": 64, "num_recurrent": 2, "num_feed_forward": 1, "vocabulary_size": 96},
    },
}
BATCH_NORM_MOMENTUM: dict[ModelScale, float] = {
    "mini": 0.02
}  # in hundreds of steps, the model's own 0.001 would keep the initial statistics
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 8, "eval_batch_size": 32, "num_parameters": None},
    "mini": {"batch_size": 8, "eval_batch_size": 256, "num_eval_train": 256, "num_parameters": None},
}


class Limits(NamedTuple):
    """Size of a batch's examples: every one is padded to it."""

    samples: int = MAX_SAMPLES
    tokens: int = MAX_TOKENS


SMALL_LIMITS: dict[ModelScale, Limits] = {  # longer utterances are left out
    "test": Limits(samples=80_000, tokens=64),
    "mini": Limits(samples=9_600, tokens=16),
}


class LibriSpeechWorkload(Workload):
    """A batch holds pairs: `inputs` (audio, paddings), `targets` (piece ids, paddings), all float32.

    Training batches carry the random numbers of SpecAugment in `augmentation`, [batch, draws], so that masks depend on an
    example's place in the global batch; without them the model draws its own.
    """

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.limits = SMALL_LIMITS.get(model_scale, Limits())
        self._packed: Packed | None = None
        self._usable: dict[Split, NDArray[np.int64]] = {}  # examples within the limits, where some are not

    @property
    def packed(self) -> Packed:
        assert self._packed is not None, "`open` comes first"
        return self._packed

    def open(self) -> None:
        if self._packed is not None:
            return
        packed = self.open_packed(preparation=PREPARATION)
        pieces = load_tokenizer(packed.folder / TOKENIZER).vocab_size()
        outputs = self.model_options().get("vocabulary_size", VOCABULARY_SIZE)
        if pieces > outputs:
            raise DataError(
                f"{packed.folder} has {pieces:,} word pieces, the model {outputs:,} outputs. "
                f"Give it another --data-dir, or use another --model-scale than {self.model_scale!r}."
            )
        self._packed = packed
        if self.model_scale in SMALL_LIMITS:
            self._usable = {split: self._within_limits(self._packed.split(split)) for split in _STORED}
            train, validation, test = (len(self._usable[split]) for split in _STORED)
            eval_train = min(self.spec.num_eval_train, train)
            self.spec = replace(
                self.spec, num_train=train, num_eval_train=eval_train, num_validation=validation, num_test=test
            )

    def _within_limits(self, split: PackedSplit) -> NDArray[np.int64]:
        sizes = [np.concatenate([part.ragged(name).lengths for part in split.parts]) for name in ("audio", "targets")]
        return np.flatnonzero((sizes[0] <= self.limits.samples) & (sizes[1] <= self.limits.tokens))

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.packed.folder / TOKENIZER)

    # ---------------------------------------------------------------- model and loss

    def model_options(self) -> dict[str, Any]:
        scaled = SCALE_OPTIONS[self.model_scale][self.spec.base]
        return {"dropout": self.spec.default_dropout, **OPTIONS[self.spec.name], **scaled}

    def build_model(self) -> nn.Module:
        options = self.model_options()
        model = Conformer(**options) if self.spec.base == "librispeech_conformer" else DeepSpeech(**options)
        for module in model.modules():
            if isinstance(module, MaskedBatchNorm):
                module.momentum = BATCH_NORM_MOMENTUM.get(self.model_scale, module.momentum)
        return model

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [batch, frames, vocabulary] and paddings [batch, frames]."""
        return model(*batch["inputs"], batch.get("augmentation"))  # type: ignore[no-any-return]

    def loss(
        self,
        outputs: tuple[Tensor, Tensor],
        batch: Batch,
        label_smoothing: float = 0.0,  # noqa: ARG002
    ) -> LossOutput:
        """CTC loss; `n_valid` counts label tokens, or with `weights` the examples that have any (as the reference does)."""
        (logits, paddings), (targets, target_paddings), weights = outputs, batch["targets"], batch.get("weights")
        target_lengths = (1 - target_paddings).sum(dim=1)
        log_probs = torch.log_softmax(logits, dim=-1)
        losses, _ = ctc(log_probs, targets.long(), (1 - paddings).sum(dim=1).long(), target_lengths.long())
        count = target_lengths.sum() if weights is None else ((weights != 0) & (target_lengths > 0)).sum()
        summed, _, per_example = weighted_loss(losses, weights)
        return LossOutput(summed, count.clamp_min(1).to(losses.dtype), per_example)

    # ---------------------------------------------------------------- data

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        sampler = EpochSampler(self.spec.num_train, global_batch_size, seed=seed, rank=rank, world_size=world_size)
        options = OPTIONS[self.spec.name]
        num_draws = 2 * (options.get("num_time_masks", 10) + options.get("num_frequency_masks", 2))

        def make_batch(draw: int) -> Batch:
            numbers = sampler.generator(draw).random((global_batch_size, num_draws), dtype=np.float32)
            batch = self._utterances(Split.TRAIN, sampler.indices(draw))
            return {**batch, "augmentation": torch.from_numpy(sampler.local(numbers).copy())}

        return make_batch

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        if split is Split.EVAL_TRAIN:
            index = subset(self.spec.num_train, self.spec.num_eval_train, seed=seed)[start:stop]
            return self._utterances(Split.TRAIN, index)
        return self._utterances(split, np.arange(start, stop))

    @cached_property
    def _train(self) -> PackedSplit:
        return self.packed.split(Split.TRAIN)

    def _utterances(self, split: Split, index: NDArray[np.int64]) -> Batch:
        """Compact form: 16-bit samples and integer ids with their lengths; `finish_batch` makes the pairs."""
        stored = self._train if split is Split.TRAIN else self.packed.split(split)
        if split in self._usable:
            index = self._usable[split][index]
        audio = np.zeros((len(index), self.limits.samples), dtype=np.int16)
        tokens = np.zeros((len(index), self.limits.tokens), dtype=np.int32)
        lengths = np.zeros((2, len(index)), dtype=np.int32)
        for position, number in enumerate(index.tolist()):
            part, row = stored.locate(number)
            for table, length, name in ((audio, lengths[0], "audio"), (tokens, lengths[1], "targets")):
                values = np.asarray(part.ragged(name)[row])
                table[position, : len(values)], length[position] = values, len(values)
        samples, ids, sizes = (torch.from_numpy(array) for array in (audio, tokens, lengths))
        return {"inputs": (samples, sizes[0]), "targets": (ids, sizes[1])}

    def finish_batch(self, batch: Batch) -> Batch:
        (samples, audio_lengths), (ids, target_lengths) = batch["inputs"], batch["targets"]
        audio_lengths = audio_lengths.clamp_min(1)  # of examples that only fill up a batch: no LSTM takes none
        return {
            **batch,
            "inputs": (samples.float(), _paddings(audio_lengths, samples.shape[1])),
            "targets": (ids.float(), _paddings(target_lengths, ids.shape[1])),
        }

    # ---------------------------------------------------------------- metrics

    def metric_sums(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Loss, tokens, word errors and words as the reference counts them, the same as usual, number of examples."""
        (logits, _), (targets, target_paddings), weights = outputs, batch["targets"], batch["weights"]
        real = (weights != 0).cpu().numpy()
        target_lengths = (1 - target_paddings).sum(dim=1)
        hypotheses = self._texts(*greedy_decode(*outputs), real)
        references = self._texts(targets.long(), target_lengths.long(), real)
        counts = [
            *word_errors([printed_tensor(text) for text in hypotheses], [printed_tensor(text) for text in references]),
            *word_errors(hypotheses, references),
        ]
        words = torch.tensor([int(count.sum()) for count in counts], dtype=torch.float64, device=logits.device)
        sums = sum_row(self.loss(outputs, batch).per_example, target_lengths * weights, weights)
        return torch.cat([sums[:2], words, sums[2:]])

    def _texts(self, ids: Tensor, lengths: Tensor, real: NDArray[np.bool_]) -> list[str]:
        """The texts of piece ids [batch, longest], of real examples only.

        A tokenizer that was trained on little text has fewer pieces than the model has outputs: those are unknown.
        """
        known = ids.masked_fill(ids >= self.tokenizer.vocab_size(), self.tokenizer.unk_id())
        rows = zip(known.cpu().numpy()[real], lengths.cpu().numpy()[real], strict=True)
        return [self.tokenizer.decode(row[:length].tolist()) for row, length in rows]

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:
        loss, tokens, errors, words, standard_errors, standard_words, count = sums.sum(dim=0).tolist()
        if count != self.spec.num_examples(split) or not (tokens and words and standard_words):
            raise DataError(
                f"An evaluation of {split} went over {count:g} utterances with {standard_words:g} words, expected "
                f"{self.spec.num_examples(split)} utterances. Check the data of this split."
            )
        return {"ctc_loss": loss / tokens, "wer": errors / words, "standard_wer": standard_errors / standard_words}


_STORED = (Split.TRAIN, Split.VALIDATION, Split.TEST)


def _paddings(lengths: Tensor, size: int) -> Tensor:
    """float32 [batch, size]: 0 on the first `lengths` entries, then 1."""
    return (torch.arange(size, device=lengths.device) >= lengths[:, None]).float()


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> LibriSpeechWorkload:
    return LibriSpeechWorkload(replace(spec, **SCALE_SPEC[model_scale]), data_dir=data_dir, model_scale=model_scale)
