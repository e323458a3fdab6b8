"""What a benchmark author writes: facts, model, loss, batches, and sums from which the metrics follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from algoperf_torch.data.datasets import check_folder, dataset_folder
from algoperf_torch.data.manifest import with_manifest
from algoperf_torch.data.packed import Packed
from algoperf_torch.data.stream import map_tensors
from algoperf_torch.spec import Batch, Generation, LossOutput, Split, WorkloadSpec
from algoperf_torch.spec import ModelScale as ModelScale


class Workload(ABC):
    """A dataset, a model, a loss and metrics, all fixed.

    A variant is another `spec` with other model options, never a subclass. Nothing is opened or read by the constructor;
    `open` does that and raises `DataError` for data that are missing or altered. Model scale "test" shrinks the model, and
    lengths and batch sizes where they cost much, without skipping any code path: for tests and a first look. Scale "mini"
    is as small, but chosen to learn generated data within seconds on two CPU cores: for the mini benchmark.
    """

    prefetch_depth: ClassVar[int] = (
        2  # batches kept ready by the training stream; 0 where making one costs microseconds
    )
    reference_devices: int = 8  # of the reference hardware; where they shape a batch, it is made as for so many
    eval_chunks_per_batch: ClassVar[int] = 8  # an evaluation batch is computed in so many chunks of fixed shape

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        self.spec = spec  # `open` puts in the numbers of examples that the data's manifest gives
        self.data_dir = data_dir
        self.model_scale = model_scale
        self.synthetic_data = False  # set by `open_folder`: results on generated data are no results of the benchmark
        self.generation: Generation | None = None  # how they were made

    def open(self) -> None:
        """Opens the data and checks them. Raises `DataError`."""

    def folder(self) -> Path:
        """The folder of the dataset, `data_dir`/<dataset>. Raises `DataError` where there is none."""
        return dataset_folder(self.data_dir, self.spec.dataset)

    def open_folder(self, *, sums: bool = True) -> Path:
        """`folder`, its files checked: against its manifest, or against what the owner publishes where it has none.

        Takes numbers of examples and the mark of synthetic data from the manifest. Without `sums` only the sizes are
        compared (for data of many gigabytes). Raises `DataError`.
        """
        folder, manifest = self.folder(), check_folder(self.data_dir, self.spec.dataset, sums=sums)
        if manifest is not None:
            self.spec = with_manifest(self.spec, manifest)
            self.synthetic_data, self.generation = manifest.synthetic, manifest.generation
        return folder

    def open_packed(self, *, preparation: int) -> Packed:
        """The prepared data in `folder`, checked; otherwise like `open_folder`. Raises `DataError`."""
        packed = Packed.open(self.folder(), dataset=self.spec.dataset, preparation=preparation)
        self.spec = with_manifest(self.spec, packed.manifest)
        self.synthetic_data, self.generation = packed.manifest.synthetic, packed.manifest.generation
        return packed

    def evaluation_files(self) -> list[Path]:
        """Files that hold validation or test examples only: opening one while the clock runs is a violation."""
        return []

    def packed_evaluation_files(self) -> list[Path]:
        """`evaluation_files` of prepared data."""
        splits = (Split.VALIDATION, Split.TEST)
        return [path for split in splits for path in sorted((self.folder() / split.value).rglob("*.npy"))]

    # ---------------------------------------------------------------- model and loss

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A freshly initialised model, on the current default device; draws from the global torch generator."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Outputs of the model for a batch, before the output activation."""
        return model(batch["inputs"])

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        """Summed loss, number of valid examples and loss per example, on the device, local to the rank."""

    # ---------------------------------------------------------------- data

    @abstractmethod
    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        """The function draw number -> this rank's share of that global batch, in host memory.

        Sample order and augmentation depend on (seed, draw, position in the global batch), never on the rank.
        """

    @abstractmethod
    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        """Examples `start` to `stop` (exclusive) of an evaluation split, in host memory, not padded.

        `seed` chooses the sample of the training split (`Split.EVAL_TRAIN`); it is fixed for a trial.
        """

    def finish_batch(self, batch: Batch) -> Batch:
        """The batch that the model and the submission see, from what the data functions make; runs on the device.

        For work that is cheap there and would multiply what is copied: conversion to float, normalisation, mixing.
        """
        return batch

    # ---------------------------------------------------------------- metrics

    @abstractmethod
    def metric_sums(self, outputs: Any, batch: Batch) -> Tensor:
        """Sums over one evaluation chunk, float64 [k], on the device; padded examples (`weights` 0) add nothing."""

    def evaluate_chunk(self, model: nn.Module, forward: Callable[[Batch], Any], batch: Batch) -> Tensor:  # noqa: ARG002
        """`metric_sums` of one evaluation chunk. `forward` runs the compiled model, `model` is the bare one.

        Overridden where a metric needs more than a forward pass, such as decoding.
        """
        return self.metric_sums(forward(batch), batch)

    @abstractmethod
    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:
        """The metrics of a split from the sums of all its chunks, float64 [num_chunks, k], in chunk order.

        Must not depend on how the chunks were distributed over ranks; `sums.sum(0)` does not.
        """

    # ---------------------------------------------------------------- evaluation batches

    def chunk_size(self, eval_batch_size: int | None = None) -> int:
        """Examples in one evaluation forward pass: the same whatever the number of ranks, so that results are too."""
        return max(1, -(-(eval_batch_size or self.spec.eval_batch_size) // self.eval_chunks_per_batch))

    def eval_batches(
        self, split: Split, *, seed: int, rank: int = 0, world_size: int = 1, eval_batch_size: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """(chunk number, batch in host memory) of this rank: chunk c belongs to rank c modulo `world_size`.

        Every chunk has the same shapes: the last is padded with zeros; `weights` (float32 [chunk]) mark what is real.
        """
        size, total = self.chunk_size(eval_batch_size), self.spec.num_examples(split)
        for chunk in range(rank, -(-total // size), world_size):
            start, stop = chunk * size, min((chunk + 1) * size, total)
            yield chunk, pad_batch(self.eval_examples(split, start, stop, seed=seed), stop - start, size)

    def num_chunks(self, split: Split, eval_batch_size: int | None = None) -> int:
        return -(-self.spec.num_examples(split) // self.chunk_size(eval_batch_size))


def pad_batch(batch: Batch, num_examples: int, size: int) -> Batch:
    """The batch with zeros appended to `size` examples, and `weights` that are 0 for them.

    Weights that the batch already has (per example or per token) are kept and padded with zeros.
    """
    if "weights" not in batch:
        batch = {**batch, "weights": torch.ones(num_examples)}
    if num_examples == size:
        return batch

    def pad(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(size - num_examples, *tensor.shape[1:])])

    padded: Batch = map_tensors(batch, pad)
    return padded
