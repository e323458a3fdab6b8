"""What submissions import as `algoperf.spec` (before 2025: `algorithmic_efficiency.spec`): the names of their annotations.

Two matter while they run: `ForwardPassMode` and `TrainingCompleteError`. The enums have the members of the original, the
other names stand for types that nobody checks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any

import torch

from algoperf_torch.errors import TrainingComplete
from algoperf_torch.interop.official_workload import ForwardPassMode, LossType, ShapeTuple, Workload
from algoperf_torch.spec import ParamRole

ParameterType = ParamRole
TrainingCompleteError = TrainingComplete  # the runner ends the trial, with one last evaluation


class ComparisonDirection(enum.Enum):
    MINIMIZE = 0
    MAXIMIZE = 1


Tensor = torch.Tensor
Shape = tuple[int, ...]
Timing = float
Steps = int
RandomState = Any
Seed = int | list[int]
Hyperparameters = Any
OptimizerState = Any
DataSelectionFn = InitOptimizerFn = UpdateParamsFn = Callable[..., Any]
ParameterKey = str
ParameterContainer = torch.nn.Module
ParameterShapeTree = dict[str, ShapeTuple]
ParameterTypeTree = dict[str, ParameterType]
ModelAuxiliaryState = Any
ModelInitState = tuple[ParameterContainer, ModelAuxiliaryState]
UpdateReturn = tuple[OptimizerState, ParameterContainer, ModelAuxiliaryState]
InputQueue = Iterator[dict[str, Any]]

__all__ = [
    "ComparisonDirection",
    "DataSelectionFn",
    "ForwardPassMode",
    "Hyperparameters",
    "InitOptimizerFn",
    "InputQueue",
    "LossType",
    "ModelAuxiliaryState",
    "ModelInitState",
    "OptimizerState",
    "ParameterContainer",
    "ParameterKey",
    "ParameterShapeTree",
    "ParameterType",
    "ParameterTypeTree",
    "RandomState",
    "Seed",
    "Shape",
    "ShapeTuple",
    "Steps",
    "Tensor",
    "Timing",
    "TrainingCompleteError",
    "UpdateParamsFn",
    "UpdateReturn",
    "Workload",
]
