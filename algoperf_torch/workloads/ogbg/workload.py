"""ogbg-molpcba: see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algoperf_torch.data.packed import Packed
from algoperf_torch.data.sampler import subset
from algoperf_torch.spec import EVALUATION_SPLITS, Batch, LossOutput, Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale, Workload
from algoperf_torch.workloads.losses import sigmoid_cross_entropy
from algoperf_torch.workloads.metrics import mean_metrics, sum_row
from algoperf_torch.workloads.ogbg.batching import GraphStore, Limits, PieceStream, num_pieces
from algoperf_torch.workloads.ogbg.gnn import GraphNet
from algoperf_torch.workloads.ogbg.metrics import mean_average_precision
from algoperf_torch.workloads.ogbg.prepare import PREPARATION

VARIANTS: dict[str, dict[str, Any]] = {
    "ogbg": {},
    "ogbg_gelu": {"activation": "gelu"},
    "ogbg_silu": {"activation": "silu"},
    "ogbg_model_size": {"latent": 128, "hidden": (256, 256), "num_steps": 3},
}
SCALE_SPEC: dict[ModelScale, dict[str, Any]] = {  # how the facts differ
    "full": {},
    "test": {"batch_size": 64, "eval_batch_size": 512},
    "mini": {"batch_size": 64, "eval_batch_size": 2_048, "num_eval_train": 1_024},
}
SCALE_OPTIONS: dict[ModelScale, dict[str, Any]] = {  # `hidden` is the width of as many hidden layers as the variant has
    "full": {},
    "test": {"latent": 32, "hidden": 32, "num_steps": 2},
    "mini": {"latent": 64, "hidden": 64, "num_steps": 2},
}
NUM_TASKS = 128
WEIGHTED, POSITIVE = 2, 1  # bits of a stored label in the rows of sums


class OgbgWorkload(Workload):
    """Logits [graphs, 128] of a `GraphBatch`; `weights` are false for missing labels and padding graphs."""

    def __init__(self, spec: WorkloadSpec, *, data_dir: Path | None = None, model_scale: ModelScale = "full") -> None:
        super().__init__(spec, data_dir=data_dir, model_scale=model_scale)
        self.spec = replace(spec, **SCALE_SPEC[model_scale])
        self._packed: Packed | None = None
        self._stores: dict[Split, GraphStore] = {}

    def model_options(self) -> dict[str, Any]:
        options = {**VARIANTS[self.spec.name], "dropout": self.spec.default_dropout}
        small = dict(SCALE_OPTIONS[self.model_scale])
        if small:
            small["hidden"] = (small["hidden"],) * len(options.get("hidden", (1,)))
        return options | small

    def build_model(self) -> GraphNet:
        return GraphNet(**self.model_options())

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        """Loss per graph and task [graphs, 128]; the valid examples are the known labels."""
        return sigmoid_cross_entropy(outputs, batch["targets"], batch.get("weights"), label_smoothing)

    # ---------------------------------------------------------------- data

    def open(self) -> None:
        if self._packed is None:
            self._packed = self.open_packed(preparation=PREPARATION)
            self._stores = {
                split: GraphStore.from_packed(self._packed.split(split))
                for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)
            }

    def evaluation_files(self) -> list[Path]:
        return [] if self._packed is None else self._packed.files(Split.VALIDATION) + self._packed.files(Split.TEST)

    def train_batches(self, *, seed: int, global_batch_size: int, rank: int, world_size: int) -> Callable[[int], Batch]:
        store = self._stores[Split.TRAIN]
        pieces = num_pieces(store, global_batch_size, world_size, self.reference_devices)
        limits = Limits.for_graphs(global_batch_size // pieces)
        stream = PieceStream(store, limits, seed=seed)
        share = pieces // world_size

        def make_batch(draw: int) -> Batch:
            first = draw * pieces + rank * share
            return store.batch([stream.piece(number) for number in range(first, first + share)], limits)

        return make_batch

    def graphs(self, split: Split, seed: int) -> tuple[GraphStore, NDArray[np.int64]]:
        """The store and the numbers of the graphs that an evaluation of a split goes over."""
        if split is Split.EVAL_TRAIN:
            store = self._stores[Split.TRAIN]
            return store, subset(store.num_graphs, self.spec.num_eval_train, seed=seed)
        store = self._stores[split]
        return store, np.arange(store.num_graphs)

    def eval_limits(self, size: int, seed: int) -> Limits:
        """Room for any chunk of `size` graphs of any split, so that all chunks have one shape.

        For the sample of the training split it is what no sample is going to exceed (eight standard deviations above the
        mean), so that the shape does not depend on the seed.
        """
        largest = []
        for count in ("n_node", "n_edge"):
            train: NDArray[np.int64] = getattr(self._stores[Split.TRAIN], count)
            bounds = [int(np.ceil(size * train.mean() + 8 * train.std() * size**0.5))]
            bounds[0] = min(bounds[0], int(np.sort(train)[-size:].sum()))
            for split in EVALUATION_SPLITS:
                store, graphs = self.graphs(split, seed)
                sums = np.add.reduceat(getattr(store, count)[graphs], np.arange(0, len(graphs), size))
                bounds.append(int(sums.max()))
            largest.append(max(bounds))
        return Limits(largest[0], largest[1], size)

    def eval_examples(self, split: Split, start: int, stop: int, *, seed: int) -> Batch:
        store, graphs = self.graphs(split, seed)
        chosen = graphs[start:stop]
        sizes = int(store.n_node[chosen].sum()), int(store.n_edge[chosen].sum())
        return store.batch([chosen], Limits(*sizes, stop - start))

    def eval_batches(
        self, split: Split, *, seed: int, rank: int = 0, world_size: int = 1, eval_batch_size: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Chunks of `chunk_size` consecutive graphs, padded to the room that the largest chunk of all splits needs."""
        size = self.chunk_size(eval_batch_size)
        limits = self.eval_limits(size, seed)
        store, graphs = self.graphs(split, seed)
        for chunk in range(rank, self.num_chunks(split, eval_batch_size), world_size):
            yield chunk, store.batch([graphs[chunk * size : (chunk + 1) * size]], limits)

    # ---------------------------------------------------------------- metrics

    def metric_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Summed loss, number of correct and of known labels; then every logit, and every label with its weight.

        The mean average precision needs all scores at once: a rank of a score in the whole split is no sum.
        """
        loss = self.loss(outputs, batch)
        weights, labels = batch["weights"], batch["targets"] > 0.5
        sums = sum_row(((outputs > 0) == labels) * weights, loss.per_example, weights)
        stored = WEIGHTED * weights.double() + POSITIVE * labels.double()
        return torch.cat([sums, outputs.double().flatten(), stored.flatten()])

    def metrics(self, sums: Tensor, split: Split) -> dict[str, float]:  # noqa: ARG002
        means = mean_metrics(sums[:, :3], ("accuracy", "loss"))
        logits, stored = sums[:, 3:].unflatten(1, (2, -1, NUM_TASKS)).transpose(0, 1).flatten(1, 2)
        scores = logits.float().sigmoid().numpy()
        bits = stored.to(torch.uint8).numpy()
        value = mean_average_precision(scores, (bits & POSITIVE) > 0, (bits & WEIGHTED) > 0)
        return {**means, "mean_average_precision": value}


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> OgbgWorkload:
    return OgbgWorkload(spec, data_dir=data_dir, model_scale=model_scale)
