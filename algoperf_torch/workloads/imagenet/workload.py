"""ImageNet: classify images; see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import nn

from algoperf_torch.data.packed import Packed, PackedSplit
from algoperf_torch.data.sampler import EpochSampler, subset
from algoperf_torch.data.workers import Workers
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Batch, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale
from algoperf_torch.workloads.classification import Classification
from algoperf_torch.workloads.imagenet.data import (
    MIXUP_ALPHA,
    SIDE,
    decode,
    mixup,
    normalise,
    num_draws,
    training_pixels,
    validation_pixels,
)
from algoperf_torch.workloads.imagenet.prepare import PREPARATION
from algoperf_torch.workloads.imagenet.raw import NUM_CLASSES
from algoperf_torch.workloads.imagenet.resnet import ResNet
from algoperf_torch.workloads.imagenet.vit import ViT

OPTIONS: dict[str, dict[str, Any]] = {  # how a variant's model differs
    "imagenet_resnet": {},
    "imagenet_resnet_silu": {"activation": "silu"},
    "imagenet_resnet_gelu": {"activation": "gelu_tanh"},
    "imagenet_resnet_large_bn_init": {"last_norm_scale": 8.0},
    "imagenet_vit": {},
    "imagenet_vit_glu": {"gated": True},
    "imagenet_vit_post_ln": {"post_norm": True},
    "imagenet_vit_map": {"attention_pool": True},
}
SCALE_OPTIONS: dict[ModelScale, dict[str, dict[str, Any]]] = {  # how the model differs at a scale
    "full": {"imagenet_resnet": {}, "imagenet_vit": {}},
    "test": {
        "imagenet_resnet": {"stage_sizes": (2, 1, 1, 1), "width": 4},
        "imagenet_vit": {"dim": 32, "depth": 2, "num_heads": 2, "hidden": 64},
    },
    "mini": {
        "imagenet_resnet": {"stage_sizes": (1, 1, 1, 1), "width": 8, "num_classes": 20},
        "imagenet_vit": {"dim": 64, "depth": 2, "num_heads": 2, "hidden": 128, "patch_size": 8, "num_classes": 20},
    },
}
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 32, "eval_batch_size": 64, "num_parameters": None},
    "mini": {"batch_size": 64, "eval_batch_size": 512, "num_eval_train": 400, "num_parameters": None},
}
SIDES: dict[ModelScale, int] = {"full": SIDE, "test": SIDE, "mini": 48}  # pixels of the model's input
CACHE_SHARE = 0.25  # of the free memory: evaluation pixels of training images are kept below this


class ImageNetWorkload(Classification):
    """Pixels are 8-bit integers until a batch is on the device. ViT trains with RandAugment and mixup.

    Mixup pairs every example with the one before it in the global batch, with one weight for all.
    """

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.augmented = spec.base == "imagenet_vit"
        self.side = SIDES[model_scale]
        self.num_classes = SCALE_OPTIONS[model_scale][spec.base].get("num_classes", NUM_CLASSES)
        self.workers = Workers()
        self._packed: Packed | None = None
        self._decoded: dict[int, NDArray[np.uint8]] = {}  # evaluation pixels of training images by number

    @property
    def packed(self) -> Packed:
        assert self._packed is not None, "`open` comes first"
        return self._packed

    def open(self) -> None:
        if self._packed is None:
            packed = self.open_packed(preparation=PREPARATION)
            side = packed.facts.get("side", SIDE)
            if side != self.side:
                raise DataError(
                    f"{packed.folder} holds pictures of {side} x {side} pixels, model scale {self.model_scale!r} needs "
                    f"{self.side} x {self.side}. Give it another --data-dir, or use another --model-scale."
                )
            self._packed = packed

    def evaluation_files(self) -> list[Path]:
        return self.packed_evaluation_files()

    def build_model(self) -> nn.Module:
        options = OPTIONS[self.spec.name] | SCALE_OPTIONS[self.model_scale][self.spec.base]
        if not self.augmented:
            return ResNet(**options)
        return ViT(dropout=self.spec.default_dropout, image_size=self.side, **options)

    # ---------------------------------------------------------------- data

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        share = EpochSampler(self.spec.num_train, global_batch_size, seed=seed, rank=rank, world_size=world_size)
        sampler = EpochSampler(self.spec.num_train, global_batch_size, seed=seed)
        positions = share.local(np.arange(global_batch_size))
        if self.augmented:  # the partner of the first example comes in front
            positions = np.concatenate([[(positions[0] - 1) % global_batch_size], positions])

        def make_batch(draw: int) -> Batch:
            random = sampler.generator(draw)
            draws = random.random((global_batch_size, num_draws(augmented=self.augmented)))[positions]
            batch = self._training_images(sampler.indices(draw)[positions], draws)
            if self.augmented:
                weight = torch.tensor(random.beta(MIXUP_ALPHA, MIXUP_ALPHA), dtype=torch.float32)
                batch["mixup_weight"] = weight
            return batch

        return make_batch

    @cached_property
    def _train(self) -> PackedSplit:
        return self.packed.split(Split.TRAIN)

    def _training_images(self, index: NDArray[np.int64], draws: NDArray[np.float64]) -> Batch:
        split = self._train
        pixels = np.empty((len(index), 3, self.side, self.side), dtype=np.uint8)

        def fill(position: int) -> None:
            part, row = split.locate(int(index[position]))
            try:
                data = part.ragged("images")[row]
                pixels[position] = training_pixels(
                    np.asarray(data).data, draws[position], augmented=self.augmented, side=self.side
                )
            except DataError as error:
                raise DataError(f"{self.packed.folder}, train, part {part.name}, image {row}: {error}") from error

        self.workers.map(fill, range(len(index)))
        labels = split.take("labels", index).astype(np.int64)
        return {"inputs": torch.from_numpy(pixels), "targets": torch.from_numpy(labels)}

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        if split is not Split.EVAL_TRAIN:
            stored = self.packed.split(split)
            pixels, labels = (np.array(stored.slice(name, start, stop)) for name in ("pixels", "labels"))
        else:
            index = subset(self.spec.num_train, self.spec.num_eval_train, seed=seed)[start:stop]
            pixels = np.stack(self.workers.map(self._evaluation_pixels, index.tolist()))
            labels = self._train.take("labels", index)
        return {"inputs": torch.from_numpy(pixels), "targets": torch.from_numpy(labels.astype(np.int64))}

    def _evaluation_pixels(self, number: int) -> NDArray[np.uint8]:
        """Pixels of a training image as for validation; kept, since every evaluation asks for the same ones."""
        if number not in self._decoded:
            part, row = self._train.locate(number)
            pixels = validation_pixels(decode(np.asarray(part.ragged("images")[row]).data), self.side)
            if not self._keeps_decoded:
                return pixels
            self._decoded[number] = pixels
        return self._decoded[number]

    @cached_property
    def _keeps_decoded(self) -> bool:
        return self.spec.num_eval_train * 3 * self.side**2 < CACHE_SHARE * psutil.virtual_memory().available

    def finish_batch(self, batch: Batch) -> Batch:
        weight = batch.get("mixup_weight")
        inputs = normalise(batch["inputs"])
        if weight is None:
            return {**batch, "inputs": inputs}
        mixed_inputs, mixed_targets = mixup(inputs, batch["targets"], weight, self.num_classes)
        return {"inputs": mixed_inputs, "targets": mixed_targets}


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> ImageNetWorkload:
    return ImageNetWorkload(replace(spec, **SCALE_SPEC[model_scale]), data_dir=data_dir, model_scale=model_scale)
