"""fastMRI: reconstruct knee images; see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from algoperf_torch.data.packed import Packed, PackedSplit
from algoperf_torch.data.sampler import EpochSampler, subset
from algoperf_torch.data.workers import Workers
from algoperf_torch.errors import DataError
from algoperf_torch.kernels.ssim import ssim
from algoperf_torch.spec import Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.fastmri.data import CROP, kept_columns, normalised, reconstruct
from algoperf_torch.workloads.fastmri.prepare import PREPARATION
from algoperf_torch.workloads.fastmri.unet import UNet
from algoperf_torch.workloads.losses import mean_absolute_error
from algoperf_torch.workloads.metrics import mean_metrics, sum_row

OPTIONS: dict[str, dict[str, Any]] = {  # how a variant's model differs
    "fastmri": {},
    "fastmri_model_size": {"num_levels": 3, "channels": 64},
    "fastmri_tanh": {"activation": "tanh"},
    "fastmri_layernorm": {"layer_norm": True},
}
SHRINK: dict[ModelScale, int] = {"full": 1, "test": 16, "mini": 4}  # so many times fewer channels
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 4, "eval_batch_size": 16, "num_parameters": None},
    "mini": {"batch_size": 8, "eval_batch_size": 256, "num_eval_train": 32, "num_parameters": None},
}
CROPS: dict[ModelScale, int] = {"full": CROP, "test": CROP, "mini": 64}  # pixels of the square image
NUMBERS = ("mean", "std", "volume_max")  # of every example


class FastMRIWorkload(Workload):
    """Slices [crop, crop]; every training slice keeps its own mask for the whole trial."""

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.crop = CROPS[model_scale]
        self.workers = Workers()
        self._packed: Packed | None = None
        self._masks: dict[tuple[int, int], NDArray[np.bool_]] = {}  # by seed and training slice; 14 MB in all

    @property
    def packed(self) -> Packed:
        assert self._packed is not None, "`open` comes first"
        return self._packed

    def open(self) -> None:
        if self._packed is None:
            packed = self.open_packed(preparation=PREPARATION)
            crop = packed.facts.get("crop", CROP)
            if crop != self.crop:
                raise DataError(
                    f"{packed.folder} holds slices of {crop} x {crop} pixels, model scale {self.model_scale!r} needs "
                    f"{self.crop} x {self.crop}. Give it another --data-dir, or use another --model-scale."
                )
            self._packed = packed

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    def build_model(self) -> nn.Module:
        options = {"channels": 32, "dropout": self.spec.default_dropout, **OPTIONS[self.spec.name]}
        options["channels"] //= SHRINK[self.model_scale]
        return UNet(**options)

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:  # noqa: ARG002
        return mean_absolute_error(outputs, batch["targets"], batch.get("weights"))

    # ---------------------------------------------------------------- data

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        sampler = EpochSampler(self.spec.num_train, global_batch_size, seed=seed, rank=rank, world_size=world_size)
        return lambda draw: self._train_slices(sampler.indices(draw), seed)

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        if split is Split.EVAL_TRAIN:
            index = subset(self.spec.num_train, self.spec.num_eval_train, seed=seed)[start:stop]
            return self._train_slices(index, seed)
        arrays = self.packed.split(split)
        return {
            name: torch.from_numpy(np.array(arrays.slice(name, start, stop)))
            for name in ("inputs", "targets", *NUMBERS)
        }

    @cached_property
    def _train(self) -> PackedSplit:
        return self.packed.split(Split.TRAIN)

    def _train_slices(self, index: NDArray[np.int64], seed: int) -> Batch:
        split = self._train
        images = {
            name: np.empty((len(index), self.crop, self.crop), dtype=np.float32) for name in ("inputs", "targets")
        }
        numbers = {name: np.empty(len(index), dtype=np.float32) for name in NUMBERS}

        def fill(position: int) -> None:
            number = int(index[position])
            part, row = split.locate(number)
            measured = np.asarray(part.ragged("columns")[row], dtype=np.complex64)
            mask = self._masks.get((seed, number))
            if mask is None:
                mask = self._masks[seed, number] = kept_columns(len(measured), (seed, number))
            outputs = (images[name][position] for name in ("inputs", "targets"))
            example = normalised(reconstruct(measured, mask), part.array("targets")[row], *outputs)
            numbers["mean"][position], numbers["std"][position] = example.mean, example.std
            numbers["volume_max"][position] = part.array("volume_max")[row]

        self.workers.map(fill, range(len(index)))
        return {name: torch.from_numpy(array) for name, array in (images | numbers).items()}

    # ---------------------------------------------------------------- metrics

    def metric_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        weights = batch["weights"]
        values = ssim(outputs, batch["targets"], *(batch[name] for name in NUMBERS))
        return sum_row(values.masked_fill(weights == 0, 0.0), self.loss(outputs, batch).per_example, weights)

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:
        return mean_metrics(sums, ("ssim", "loss"), self.spec.num_examples(split))


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> FastMRIWorkload:
    return FastMRIWorkload(replace(spec, **SCALE_SPEC[model_scale]), data_dir=data_dir, model_scale=model_scale)
