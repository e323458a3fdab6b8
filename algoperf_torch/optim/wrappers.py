"""Weight averaging around any training algorithm: `ema:` (exponential) and `lawa:` (the latest snapshots).

What is evaluated is the average; training goes on from the live weights. Batch-norm statistics of the average are
recomputed from the latest batches, since nothing has ever trained there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from algoperf_torch.errors import HyperparameterError
from algoperf_torch.kernels import registry
from algoperf_torch.kernels.ema import ema_
from algoperf_torch.kernels.launch import DTYPES, TensorTable, is_dense
from algoperf_torch.optim.arithmetic import state_dtype, zeros_for
from algoperf_torch.optim.base import TrainingAlgorithm
from algoperf_torch.optim.batch_norm import BatchNormRecomputation
from algoperf_torch.optim.context import TrainingContext
from algoperf_torch.spec import Batch, Hyperparameters


class AveragingAlgorithm(TrainingAlgorithm):
    """Trains with `inner_class` and evaluates an average of the weights.

    Attributes:
        inner_class: what trains.
        own: the wrapper's hyperparameters and their defaults; all others go to the inner algorithm.
    """

    inner_class: ClassVar[type[TrainingAlgorithm]]
    own: ClassVar[Mapping[str, float]]

    def __init__(
        self, inner: TrainingAlgorithm, model: nn.Module, options: Mapping[str, float], context: TrainingContext
    ) -> None:
        self.inner = inner
        self.label_smoothing = inner.label_smoothing
        self.parameters: list[Tensor] = list(model.parameters())
        self.options = options
        self.context = context
        self.steps = 0
        self._live: list[Tensor] = []  # the weights that train, while the average is being evaluated
        self._batch_norm = BatchNormRecomputation(model)

    @classmethod
    def around(cls, inner_class: type[TrainingAlgorithm]) -> type[TrainingAlgorithm]:
        attributes = {"inner_class": inner_class, "batch_sizes": inner_class.batch_sizes}
        return type(f"{cls.__name__}Of{inner_class.__name__}", (cls,), attributes)

    @classmethod
    def from_context(cls, model: nn.Module, hyperparameters: Hyperparameters, context: TrainingContext) -> Self:
        options, rest = split_own(cls.own, hyperparameters)
        cls.check_own(options)
        return cls(cls.inner_class.from_context(model, rest, context), model, options, context)

    @classmethod
    def check_hyperparameters(cls, hyperparameters: Hyperparameters) -> None:
        options, rest = split_own(cls.own, hyperparameters)
        cls.check_own(options)
        cls.inner_class.check_hyperparameters(rest)

    @classmethod
    @abstractmethod
    def check_own(cls, options: Mapping[str, float]) -> None:
        """Raises `HyperparameterError` for values of the wrapper's own that cannot be used."""

    @abstractmethod
    def accumulate(self) -> None:
        """Takes the weights after a step into the average; `steps` counts this one already."""

    @abstractmethod
    def average(self) -> list[Tensor] | None:
        """The average of every parameter, or `None` where there is none yet."""

    def select_batch(self, stream: Iterator[Batch]) -> Any:
        return self.inner.select_batch(stream)

    def training_step(self, batch: Any) -> None:
        self.inner.training_step(batch)
        self._batch_norm.keep(batch)
        self.steps += 1
        self.accumulate()

    @torch.no_grad()
    def prepare_for_eval(self) -> None:
        self.inner.prepare_for_eval()
        average = self.average()
        if average is not None:
            self._live = [parameter.clone() for parameter in self.parameters]
            torch._foreach_copy_(self.parameters, average)
            self._batch_norm.recompute(self.context)

    @torch.no_grad()
    def resume_training(self) -> None:
        if self._live:
            torch._foreach_copy_(self.parameters, self._live)
            self._live = []
        self.inner.resume_training()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]


class ExponentialAverage(AveragingAlgorithm):
    """Average with weights decay^age (Polyak and Juditsky, 1992; Morales-Brotons et al., 2024, arXiv:2411.18704).

    The decay starts small, min(ema_decay, (1 + t) / (10 + t)), so that the initial weights do not linger.
    """

    own: ClassVar[Mapping[str, float]] = {"ema_decay": 0.999}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._table = TensorTable()
        self._is_fused = all(parameter.dtype in DTYPES and is_dense(parameter) for parameter in self.parameters)
        self._average = [parameter.detach().to(state_dtype(parameter), copy=True) for parameter in self.parameters]

    @classmethod
    def check_own(cls, options: Mapping[str, float]) -> None:
        if not 0 <= options["ema_decay"] < 1:
            raise HyperparameterError(f"Invalid ema_decay={options['ema_decay']}: must be in [0, 1).")

    @torch.no_grad()
    def accumulate(self) -> None:
        decay = min(self.options["ema_decay"], (1 + self.steps) / (10 + self.steps))
        if self._is_fused and registry.updates_fused(self.context.device):
            weight = torch.full((), 1 - decay, device=self.context.device)
            ema_.with_table(self._table, self._average, self.parameters, weight)
            return
        now = [parameter.to(mean.dtype) for parameter, mean in zip(self.parameters, self._average, strict=True)]
        torch._foreach_lerp_(self._average, now, 1 - decay)

    def average(self) -> list[Tensor]:
        return self._average

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        torch._foreach_copy_(self._average, [item.to(self.context.device) for item in state["average"]])


class LatestAverage(AveragingAlgorithm):
    """Mean of the latest `lawa_k` snapshots, one every `lawa_period` of the step hint (Kaddour, 2022, arXiv:2209.14981).

    The defaults cover the latest one per cent of training (Ajroldi et al., 2025, arXiv:2502.06761).
    """

    own: ClassVar[Mapping[str, float]] = {"lawa_k": 5, "lawa_period": 0.002}

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._period = max(1, round(self.options["lawa_period"] * self.context.step_hint))
        self._snapshots: list[list[Tensor]] = []  # oldest first

    @classmethod
    def check_own(cls, options: Mapping[str, float]) -> None:
        if options["lawa_k"] != int(options["lawa_k"]) or options["lawa_k"] < 1:
            raise HyperparameterError(f"Invalid lawa_k={options['lawa_k']}: must be a whole number >= 1.")
        if not 0 < options["lawa_period"] <= 1:
            raise HyperparameterError(f"Invalid lawa_period={options['lawa_period']}: must be in (0, 1].")

    @torch.no_grad()
    def accumulate(self) -> None:
        if self.steps % self._period == 0:
            self._snapshots.append([parameter.clone() for parameter in self.parameters])
            del self._snapshots[: -int(self.options["lawa_k"])]

    @torch.no_grad()
    def average(self) -> list[Tensor] | None:
        if not self._snapshots:
            return None
        mean = [zeros_for(parameter) for parameter in self.parameters]
        for snapshot in self._snapshots:
            torch._foreach_add_(mean, snapshot, alpha=1 / len(self._snapshots))
        return mean

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "snapshots": self._snapshots}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._snapshots = [[item.to(self.context.device) for item in snapshot] for snapshot in state["snapshots"]]


exponential_average = ExponentialAverage.around
latest_average = LatestAverage.around


def split_own(own: Mapping[str, float], hyperparameters: Mapping[str, Any]) -> tuple[dict[str, float], Hyperparameters]:
    """A wrapper's own hyperparameters, filled up with defaults, and the rest. Raises `HyperparameterError`."""
    options = dict(own)
    for name in own.keys() & hyperparameters.keys():
        value = hyperparameters[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise HyperparameterError(f"Hyperparameter {name!r} is {value!r}. Write a number.")
        options[name] = value
    return options, Hyperparameters({name: value for name, value in hyperparameters.items() if name not in own})
