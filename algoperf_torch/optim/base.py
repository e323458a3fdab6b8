"""The algorithm interface: `TrainingAlgorithm`, `OptimizerAlgorithm` and `BaseOptimizer`, each usable alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

from torch import nn

from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.spec import Batch, Hyperparameters


class TrainingAlgorithm(ABC):
    """All that the runner knows of a submission."""

    batch_sizes: ClassVar[
        dict[str, int]
    ] = {}  # workload name -> global batch size; others use the workload's reference size

    @classmethod
    @abstractmethod
    def from_context(cls, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> Self:
        """Builds the algorithm for a freshly initialised model. Not timed, but its duration is recorded."""

    def select_batch(self, stream: Iterator[Batch]) -> Any:
        """The data of one step; timed."""
        return next(stream)

    @abstractmethod
    def training_step(self, batch: Any) -> None:
        """One update of the model; timed."""

    def prepare_for_eval(self) -> None:
        """Called before every evaluation; timed. Averaged weights are swapped in here."""

    def resume_training(self) -> None:
        """Called after every evaluation; timed. Undoes `prepare_for_eval`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint needs beside the model: tensors in plain containers, equal on all ranks."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; called on a freshly built algorithm."""
