"""Sharpness-aware minimisation (Foret et al., 2021, arXiv:2010.01412, algorithm 1) over any optimizer.

The gradient that updates is taken at w + rho g / ||g||, with g the gradient of the same global batch at w and the norm over
all parameters. Batch-norm statistics move in the first pass only. `sam` alone is SAM over AdamW, as in AlgoPerf's baseline.

Search space: the AdamW points of `nadamw.json`, each with a rho of the paper's grid (0.01 to 0.5, 0.05 its default).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from algoperf_torch.errors import HyperparameterError, SubmissionLoadError
from algoperf_torch.optim.adamw import AdamW
from algoperf_torch.optim.base import OptimizerAlgorithm, TrainingAlgorithm
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.optim.wrappers import split_own
from algoperf_torch.spec import Batch, Hyperparameters


class SharpnessAware(OptimizerAlgorithm):
    """A training step with two passes; mixed in before the class of the base algorithm."""

    own: ClassVar[Mapping[str, float]] = {"rho": 0.05}

    def __init__(self, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> None:
        options, rest = split_own(self.own, hyperparameters)
        self.check_own(options)
        super().__init__(model, rest, context)
        self.rho = options["rho"]

    @classmethod
    def check_hyperparameters(cls, hyperparameters: Hyperparameters) -> None:
        options, rest = split_own(cls.own, hyperparameters)
        cls.check_own(options)
        super().check_hyperparameters(rest)

    @classmethod
    def check_own(cls, options: Mapping[str, float]) -> None:
        if not options["rho"] >= 0:
            raise HyperparameterError(f"Invalid rho={options['rho']}: must be >= 0.")

    def backward(self, batch: Batch, *, update_batch_norm: bool = True) -> Tensor:
        loss = super().backward(batch, update_batch_norm=update_batch_norm)
        with torch.no_grad():
            parameters: list[Tensor] = [
                parameter for parameter in self.model.parameters() if parameter.grad is not None
            ]
            gradients: list[Any] = [parameter.grad for parameter in parameters]
            scale = self.rho / nn.utils.get_total_norm(gradients).clamp_min(1e-12)
            here = [parameter.clone() for parameter in parameters]
            torch._foreach_add_(parameters, list(torch._foreach_mul(gradients, scale)))
        super().backward(batch, update_batch_norm=False)
        with torch.no_grad():
            torch._foreach_copy_(parameters, here)
        return loss


def sharpness_aware(inner_class: type[TrainingAlgorithm]) -> type[TrainingAlgorithm]:
    """SAM over the optimizer that `inner_class` drives. Raises `SubmissionLoadError` where it drives none."""
    if not issubclass(inner_class, OptimizerAlgorithm):
        raise SubmissionLoadError(
            f"sam: works around optimizers; {inner_class.__name__} is a whole training algorithm."
        )
    return type(f"SharpnessAware{inner_class.__name__}", (SharpnessAware, inner_class), {})


class SAM(SharpnessAware):
    """SAM over AdamW."""

    optimizer_class = AdamW
