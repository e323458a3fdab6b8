"""Digits: classify 8 x 8 images; see `SPECS` for the facts."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from algoperf_torch.spec import Split, WorkloadSpec
from algoperf_torch.workloads.base import ModelScale
from algoperf_torch.workloads.classification import InMemoryClassification, Labelled
from algoperf_torch.workloads.digits.data import load_digits
from algoperf_torch.workloads.digits.model import DigitsNet


class DigitsWorkload(InMemoryClassification):
    """Inputs are stored ready to use: a batch is one gather and needs no background thread."""

    prefetch_depth = 0
    eval_chunks_per_batch = 2  # 300 examples in 2 chunks of 150

    def load(self) -> dict[Split, Labelled]:
        return load_digits(self.spec)

    def build_model(self) -> nn.Module:
        return DigitsNet(self.spec.default_dropout)


def build(spec: WorkloadSpec, data_dir: Path | None, model_scale: ModelScale) -> DigitsWorkload:
    return DigitsWorkload(spec, data_dir=data_dir, model_scale=model_scale)
