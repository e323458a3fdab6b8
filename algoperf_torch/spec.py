"""The vocabulary of the benchmark: splits, losses, parameter roles, targets, workload facts, hyperparameters.

Plain values, importable without torch: the runner, the workloads, the optimizers and the scorer all speak in them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from algoperf_torch.errors import HyperparameterError

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, Any]  # `inputs`, `targets`, optional `weights`, and the workload's own keys


class Split(enum.StrEnum):
    """A part of a dataset. The value is the name on disk; `prefix` is the name in the logs."""

    TRAIN = "train"
    EVAL_TRAIN = "eval_train"
    VALIDATION = "validation"
    TEST = "test"

    @property
    def prefix(self) -> str:
        """Prefix of this split's metrics in the logs: a sample of the training split is logged as `train`."""
        return "train" if self is Split.EVAL_TRAIN else self.value


ModelScale = Literal["full", "test", "mini"]

EVALUATION_SPLITS = (Split.EVAL_TRAIN, Split.VALIDATION, Split.TEST)


class LossKind(enum.StrEnum):
    SOFTMAX_CROSS_ENTROPY = "softmax_cross_entropy"
    SIGMOID_CROSS_ENTROPY = "sigmoid_cross_entropy"
    MEAN_ABSOLUTE_ERROR = "mean_absolute_error"
    MEAN_SQUARED_ERROR = "mean_squared_error"
    CTC = "ctc"


class ParamRole(enum.StrEnum):
    """What a parameter tensor does in its model, read from the module that owns it."""

    WEIGHT = "weight"
    BIAS = "bias"
    CONV_WEIGHT = "conv_weight"
    BATCH_NORM_SCALE = "batch_norm_scale"
    BATCH_NORM_BIAS = "batch_norm_bias"
    LAYER_NORM_SCALE = "layer_norm_scale"
    LAYER_NORM_BIAS = "layer_norm_bias"
    EMBEDDING = "embedding"
    ATTENTION_Q = "attention_q"
    ATTENTION_K = "attention_k"
    ATTENTION_V = "attention_v"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_KV = "attention_kv"
    ATTENTION_OUT = "attention_out"
    ATTENTION_BIAS = "attention_bias"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """What a submission may know of one parameter tensor, beside the tensor itself."""

    name: str
    role: ParamRole
    is_output: bool = False  # part of the last layer; an embedding tied to the output layer has this too


class Ruleset(enum.StrEnum):
    EXTERNAL = "external"
    SELF = "self"


MINIMISED_METRICS = frozenset({"ce_loss", "error_rate", "ctc_loss", "wer", "standard_wer", "l1_loss", "loss", "ppl"})
MAXIMISED_METRICS = frozenset({"mean_average_precision", "ssim", "accuracy", "bleu"})


def higher_is_better(metric: str) -> bool:
    """Direction of a metric by its name, without a split prefix. Raises `ValueError` for an unknown name."""
    if metric in MAXIMISED_METRICS:
        return True
    if metric in MINIMISED_METRICS:
        return False
    raise ValueError(f"Unknown metric {metric=}. Must be one of {sorted(MINIMISED_METRICS | MAXIMISED_METRICS)}.")


@dataclass(frozen=True)
class Target:
    """The value of a metric that ends the race."""

    metric: str  # without split prefix
    value: float

    @property
    def higher_is_better(self) -> bool:
        return higher_is_better(self.metric)

    def reached(self, value: float, *, strict: bool = True) -> bool:
        """Whether `value` meets the target; NaN never does. The harness compares strictly, the official scorer not."""
        if math.isnan(value):
            return False
        if value == self.value:
            return not strict
        return (value > self.value) == self.higher_is_better


@dataclass(frozen=True, kw_only=True)
class WorkloadSpec:
    """The frozen facts of a workload. Targets, budgets, periods and hints belong to the benchmark version."""

    name: str
    base: str  # the base workload's name; equal to `name` where it is no variant
    dataset: str
    loss: LossKind
    metric: str  # the target metric, without split prefix
    num_train: int  # examples
    num_eval_train: int
    num_validation: int
    num_test: int  # 0 where there is no test split
    batch_size: int  # reference global batch of the training stream, in examples
    eval_batch_size: int  # global
    metrics: tuple[str, ...]  # all metrics that an evaluation reports, sorted, target metric included
    default_dropout: float = 0.0
    num_parameters: int | None = None
    task: str = ""  # for the listing, such as "image classification"
    model: str = ""  # for the listing, such as "ResNet-50"

    @property
    def higher_is_better(self) -> bool:
        return higher_is_better(self.metric)

    def num_examples(self, split: Split) -> int:
        return {
            Split.TRAIN: self.num_train,
            Split.EVAL_TRAIN: self.num_eval_train,
            Split.VALIDATION: self.num_validation,
            Split.TEST: self.num_test,
        }[split]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How synthetic data were made: equal ones give equal examples."""

    examples: int  # of the training split, as asked for; the other splits follow from it
    seed: int = 0
    generator: int = 1  # version of the dataset's generator
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the generator, other than its defaults

    def __post_init__(self) -> None:
        if self.examples < 1 or self.seed < 0:
            raise ValueError(f"examples is {self.examples} and seed {self.seed}; must be at least 1 and 0.")
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings is {self.settings!r}; write a table.")  # noqa: TRY004 - told like all the others

    def __str__(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in sorted(self.settings.items()))
        return f"{self.examples:,} generated examples, seed {self.seed}, generator {self.generator}{settings}"


class LossOutput(NamedTuple):
    """Loss of one rank's part of a batch, on the device. `summed / n_valid` is the mean over that part."""

    summed: Tensor  # scalar, differentiable
    n_valid: Tensor  # scalar: number of valid examples (tokens, labels) that `summed` adds up
    per_example: Tensor  # [batch, ...], already multiplied by the weights


class Hyperparameters(Mapping[str, Any]):
    """One point of a search space: a read-only mapping whose entries can be read as attributes.

    An absent field raises `AttributeError`, so that `getattr(hyperparameters, name, default)` works.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        merged = {**(values or {}), **more}
        for name in merged:
            if not isinstance(name, str) or not name.isidentifier():
                raise HyperparameterError(
                    f"Hyperparameter name {name!r} is not an identifier. Write, for example, 'weight_decay'."
                )
        object.__setattr__(self, "_values", MappingProxyType(merged))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"No hyperparameter {name!r}. Present: {', '.join(self._values) or 'none'}.") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Hyperparameters are read-only: cannot set {name!r}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Hyperparameters, (dict(self._values),))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Hyperparameters({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"
