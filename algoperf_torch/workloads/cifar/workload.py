"""CIFAR-10: see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.data.sampler import EpochSampler
from algoperf_torch.spec import Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale
from algoperf_torch.workloads.cifar.data import FOLDER, SIDE, TEST, load_cifar
from algoperf_torch.workloads.cifar.model import SmallResNet
from algoperf_torch.workloads.classification import InMemoryClassification, Labelled

MEAN = (0.49139968, 0.48215827, 0.44653124)  # of the training pixels, on the scale 0 to 1
STD = (0.24703233, 0.24348505, 0.26158768)
PADDING = 4  # black pixels on every side, before the random crop


class CifarWorkload(InMemoryClassification):
    def load(self) -> dict[Split, Labelled]:
        return load_cifar(self.open_folder(), self.spec)

    def evaluation_files(self) -> list[Path]:
        return [path for name in TEST if (path := self.folder() / FOLDER / name).is_file()]

    def build_model(self) -> nn.Module:
        return SmallResNet(width=8) if self.model_scale == "test" else SmallResNet()

    def inputs(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return images.float().div_(255).sub_(mean).div_(std)

    def augmented_inputs(self, images: Tensor, sampler: EpochSampler, draw: int) -> Tensor:
        """Random crop of the padded image, random flip: keyed by the position in the global batch."""
        random = sampler.generator(draw)
        size = sampler.global_batch_size
        offsets = sampler.local(random.integers(0, 2 * PADDING + 1, size=(size, 2)))
        flips = sampler.local(random.random(size) < 0.5)
        return self.inputs(crop_and_flip(images, torch.from_numpy(offsets), torch.from_numpy(flips)))


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor) -> Tensor:
    """Each image [3, 32, 32] of the batch padded by 4, cut at its (top, left) of `offsets` [batch, 2], mirrored or not."""
    padded = functional.pad(images, (PADDING,) * 4)
    span = torch.arange(SIDE)
    rows = offsets[:, :1] + span  # [batch, 32]
    columns = offsets[:, 1:] + torch.where(flips[:, None], span.flip(0), span)
    index = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> CifarWorkload:
    return CifarWorkload(spec, data_dir=data_dir, model_scale=model_scale)
