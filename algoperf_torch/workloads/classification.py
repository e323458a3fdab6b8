"""What the image classification workloads share: loss, accuracy, and batches out of arrays in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from algoperf_torch.data.sampler import EpochSampler, subset
from algoperf_torch.spec import Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.losses import softmax_cross_entropy
from algoperf_torch.workloads.metrics import accuracy_row, mean_metrics


class Classification(Workload):
    """Logits [batch, classes] against class indices [batch]: softmax cross entropy, accuracy."""

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        return softmax_cross_entropy(outputs, batch["targets"], batch.get("weights"), label_smoothing)

    def metric_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        return accuracy_row(outputs, batch["targets"], batch["weights"], self.loss(outputs, batch))

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:
        return mean_metrics(sums, ("accuracy", "loss"), self.spec.num_examples(split))


class Labelled(NamedTuple):
    """The examples of one split: `images` [n, channels, height, width] as stored, `labels` int64 [n]."""

    images: Tensor
    labels: Tensor


class InMemoryClassification(Classification):
    """A data set that fits in memory: training batches gather from it, and so do the evaluation splits."""

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self._splits: dict[Split, Labelled] = {}

    def open(self) -> None:
        if not self._splits:
            self._splits = self.load()

    @abstractmethod
    def load(self) -> dict[Split, Labelled]:
        """Train, validation and test examples, of the sizes that `spec` gives. Raises `DataError`."""

    def inputs(self, images: Tensor) -> Tensor:
        """float32 inputs of the model from stored images, without augmentation."""
        return images

    def augmented_inputs(self, images: Tensor, sampler: EpochSampler, draw: int) -> Tensor:  # noqa: ARG002
        """float32 training inputs of this rank's share of global batch `draw`."""
        return self.inputs(images)

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        train = self._splits[Split.TRAIN]
        sampler = EpochSampler(len(train.labels), global_batch_size, seed=seed, rank=rank, world_size=world_size)

        def make_batch(draw: int) -> Batch:
            index = torch.from_numpy(sampler.indices(draw))
            inputs = self.augmented_inputs(train.images[index], sampler, draw)
            return {"inputs": inputs, "targets": train.labels[index]}

        return make_batch

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        if split is Split.EVAL_TRAIN:
            examples = self._splits[Split.TRAIN]
            index = torch.from_numpy(subset(len(examples.labels), self.spec.num_eval_train, seed=seed)[start:stop])
            images, labels = examples.images[index], examples.labels[index]
        else:
            images, labels = (stored[start:stop] for stored in self._splits[split])
        return {"inputs": self.inputs(images), "targets": labels}
