"""MNIST: see `SPECS` for the facts, docs/fidelity.md for what differs from the reference."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from algoperf_torch.spec import Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale
from algoperf_torch.workloads.classification import InMemoryClassification, Labelled
from algoperf_torch.workloads.mnist.data import TEST, load_mnist
from algoperf_torch.workloads.mnist.model import Perceptron

MEAN, STD = 0.1307, 0.3081  # of the training pixels, on the scale 0 to 1


class MnistWorkload(InMemoryClassification):
    def load(self) -> dict[Split, Labelled]:
        return load_mnist(self.open_folder(), self.spec)

    def evaluation_files(self) -> list[Path]:
        return [self.folder() / name for name in TEST]

    def build_model(self) -> nn.Module:
        return Perceptron()

    def inputs(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(MEAN).div_(STD)


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> MnistWorkload:
    return MnistWorkload(spec, data_dir=data_dir, model_scale=model_scale)
