"""AlgoPerf in PyTorch: how fast does a training algorithm reach a fixed target, in wall-clock time?

The public names are resolved on first use (PEP 562), so that importing one part never loads another.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from algoperf_torch.errors import AlgoPerfError as AlgoPerfError
    from algoperf_torch.errors import TrainingComplete as TrainingComplete
    from algoperf_torch.optim.base import BaseOptimizer as BaseOptimizer
    from algoperf_torch.optim.base import OptimizerAlgorithm as OptimizerAlgorithm
    from algoperf_torch.optim.base import TrainingAlgorithm as TrainingAlgorithm
    from algoperf_torch.optim.context import TrainingContext as TrainingContext
    from algoperf_torch.spec import Hyperparameters as Hyperparameters
    from algoperf_torch.spec import ParamRole as ParamRole

__version__ = "0.1.0"

_HOME = {
    "AlgoPerfError": "errors",
    "BaseOptimizer": "optim.base",
    "Hyperparameters": "spec",
    "OptimizerAlgorithm": "optim.base",
    "ParamRole": "spec",
    "TrainingAlgorithm": "optim.base",
    "TrainingComplete": "errors",
    "TrainingContext": "optim.context",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'algoperf_torch' has no attribute {name!r}")
    return getattr(import_module(f"algoperf_torch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
