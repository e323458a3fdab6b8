"""fastMRI: reconstruct knee images; see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.data.packed import Packed
from algoperf_torch.data.sampler import EpochSampler, subset
from algoperf_torch.data.workers import Workers
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
TEST_SHRINK = 16  # model scale "test": so many times fewer channels
SSIM_WINDOW = 7  # pixels
NUMBERS = ("mean", "std", "volume_max")  # of every example


class FastMRIWorkload(Workload):
    """Slices [320, 320]; every training slice keeps its own mask for the whole trial."""

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.workers = Workers()
        self._packed: Packed | None = None

    @property
    def packed(self) -> Packed:
        assert self._packed is not None, "`open` comes first"
        return self._packed

    def open(self) -> None:
        if self._packed is None:
            self._packed = self.open_packed(preparation=PREPARATION)

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    def build_model(self) -> nn.Module:
        options = {"channels": 32, "dropout": self.spec.default_dropout, **OPTIONS[self.spec.name]}
        if self.model_scale == "test":
            options["channels"] //= TEST_SHRINK
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

    def _train_slices(self, index: NDArray[np.int64], seed: int) -> Batch:
        split = self.packed.split(Split.TRAIN)
        images = {name: np.empty((len(index), CROP, CROP), dtype=np.float32) for name in ("inputs", "targets")}
        numbers = {name: np.empty(len(index), dtype=np.float32) for name in NUMBERS}

        def fill(position: int) -> None:
            number = int(index[position])
            part, row = split.locate(number)
            measured = np.asarray(part.ragged("columns")[row], dtype=np.complex64)
            image = reconstruct(measured, kept_columns(len(measured), (seed, number)))
            example = normalised(image, part.array("targets")[row])
            images["inputs"][position], images["targets"][position] = example.inputs, example.targets
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


def ssim(a: Tensor, b: Tensor, mean: Tensor, std: Tensor, volume_max: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) of normalised images [batch, height, width], averaged over windows.

    Args:
        mean, std: [batch], undo the normalisation.
        volume_max: [batch], the data range; 1 is taken where it is 0.
    """
    mean, std = mean[:, None, None], std[:, None, None]
    data_range = torch.where(volume_max == 0, 1.0, volume_max)[:, None, None]
    x, y = a * std + mean, b * std + mean

    def average(image: Tensor) -> Tensor:
        return functional.avg_pool2d(image.unsqueeze(1), SSIM_WINDOW, stride=1).squeeze(1)

    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)  # sample variance instead of population variance
    mean_x, mean_y = average(x), average(y)
    var_x, var_y = sample * (average(x * x) - mean_x**2), sample * (average(y * y) - mean_y**2)
    covariance = sample * (average(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2)).clamp(-1, 1)


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> FastMRIWorkload:
    if model_scale == "test":
        spec = replace(spec, batch_size=4, eval_batch_size=16, num_parameters=None)
    return FastMRIWorkload(spec, data_dir=data_dir, model_scale=model_scale)
