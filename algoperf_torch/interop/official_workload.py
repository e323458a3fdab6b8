"""The object `workload` that existing submissions are handed: the members of AlgoPerf's interface over a `TrainingContext`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from algoperf_torch.errors import SubmissionError
from algoperf_torch.optim.context import OfficialFacts, TrainingContext
from algoperf_torch.spec import Batch, LossKind, Parameter, ParamRole, Split, Target


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class LossType(enum.Enum):
    SOFTMAX_CROSS_ENTROPY = 0
    SIGMOID_CROSS_ENTROPY = 1
    MEAN_ABSOLUTE_ERROR = 2
    CTC_LOSS = 3
    MEAN_SQUARED_ERROR = 4


class ShapeTuple(NamedTuple):
    """The shape of a parameter, as one value."""

    shape_tuple: tuple[int, ...]


LOSS_TYPES = {
    LossKind.SOFTMAX_CROSS_ENTROPY: LossType.SOFTMAX_CROSS_ENTROPY,
    LossKind.SIGMOID_CROSS_ENTROPY: LossType.SIGMOID_CROSS_ENTROPY,
    LossKind.MEAN_ABSOLUTE_ERROR: LossType.MEAN_ABSOLUTE_ERROR,
    LossKind.MEAN_SQUARED_ERROR: LossType.MEAN_SQUARED_ERROR,
    LossKind.CTC: LossType.CTC_LOSS,
}
WORKLOAD_DEFAULT = object()  # a dropout rate that is not given


class MetricsLogger:
    """`workload.metrics_logger` of rank 0: a row of `measurements.csv` for every call."""

    def __init__(self, context: TrainingContext) -> None:
        self._context = context

    def append_scalar_metrics(self, metrics: dict[str, Any], global_step: int) -> None:
        """Notes scalars of a step; like the original, adds `global_step` to the dictionary that it is given."""
        for name, value in metrics.items():
            if isinstance(value, Tensor):
                value = value.detach()
            elif not isinstance(value, int | float) and not hasattr(value, "__float__"):
                raise SubmissionError(f"metrics_logger: {name!r} is {value!r}. Only numbers can be logged.")
            if name not in ("global_step", "preemption_count"):
                self._context.scalars.append((global_step, str(name), value))
        metrics["global_step"] = global_step


class Workload:
    """What AlgoPerf's rules let a submission read and call, under the original names; the rest is not offered.

    Attributes:
        metrics_logger: None on all ranks but the first.
        dropout_rate: in force where a forward call gives none; None: the workload's own.
    """

    def __init__(self, context: TrainingContext, facts: OfficialFacts, dropout_rate: float | None) -> None:
        self._context = context
        self._facts = facts
        self._modules = list(context.model.modules())
        self._dropout: Any = WORKLOAD_DEFAULT  # the rate that the model has; not known after a restore
        self._batch: Batch = {}  # of the latest forward pass
        self.dropout_rate = dropout_rate
        self.metrics_logger = MetricsLogger(context) if context.rank == 0 else None

    # ---------------------------------------------------------------- passes

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: Any,
        mode: ForwardPassMode,
        rng: Any,  # noqa: ARG002
        update_batch_norm: bool,
        dropout_rate: Any = WORKLOAD_DEFAULT,
    ) -> tuple[Any, Any]:
        """(outputs before the output activation, model state). Training mode is set here, whatever was set before.

        In evaluation mode nothing is differentiated, and no running statistic moves.
        """
        if params is not self._facts.container and params is not self._context.model:
            raise SubmissionError("model_fn: `params` must be the model that the submission was given.")
        if mode is ForwardPassMode.EVAL:
            self._context.model.eval()
            with torch.no_grad():
                return self._forward(augmented_and_preprocessed_input_batch, update_batch_norm=False), model_state
        if not all(module.training for module in self._modules):
            params.train()
        self._set_dropout(self.dropout_rate if dropout_rate is WORKLOAD_DEFAULT else dropout_rate)
        outputs = self._forward(augmented_and_preprocessed_input_batch, update_batch_norm=bool(update_batch_norm))
        return outputs, model_state

    def loss_fn(
        self, label_batch: Any, logits_batch: Any, mask_batch: Any = None, label_smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        """`summed`, `n_valid_examples` (scalars on the device) and `per_example`, local to the rank."""
        batch = self._batch
        if batch.get("targets") is not label_batch or batch.get("weights") is not mask_batch:
            batch = {"targets": label_batch} | ({} if mask_batch is None else {"weights": mask_batch})
        output = self._context.loss(logits_batch, batch, label_smoothing)
        return {"summed": output.summed, "n_valid_examples": output.n_valid, "per_example": output.per_example}

    def _forward(self, batch: Batch, *, update_batch_norm: bool) -> Any:
        self._batch = (
            batch  # the loss gets the same object back: its compiled graph was made for the keys of whole batches
        )
        return self._context.forward(batch, update_batch_norm=update_batch_norm)

    def _set_dropout(self, rate: float | None) -> None:
        if rate != self._dropout:
            self._context.engine.set_dropout(rate)
            self._dropout = rate

    def step_done(self) -> None:
        """Lets the batch go."""
        self._batch = {}

    def restored(self) -> None:
        """After a checkpoint was loaded: the model may have another dropout rate than it was last given here."""
        self._dropout = WORKLOAD_DEFAULT

    # ---------------------------------------------------------------- facts

    @property
    def step_hint(self) -> int:
        return self._context.step_hint

    @property
    def max_allowed_runtime_sec(self) -> float:
        """The budget of the external ruleset, whatever the ruleset of the trial."""
        return _whole(self._facts.budget_seconds)

    @property
    def eval_period_time_sec(self) -> float:
        return _whole(self._facts.eval_period_seconds)

    @property
    def target_metric_name(self) -> str:
        return self._context.target.metric

    @property
    def loss_type(self) -> LossType:
        return LOSS_TYPES[self._context.loss_kind]

    @property
    def num_train_examples(self) -> int:
        return self._facts.num_examples[Split.TRAIN]

    @property
    def num_eval_train_examples(self) -> int:
        return self._facts.num_examples[Split.EVAL_TRAIN]

    @property
    def num_validation_examples(self) -> int:
        return self._facts.num_examples[Split.VALIDATION]

    @property
    def num_test_examples(self) -> int:
        return self._facts.num_examples[Split.TEST]

    @property
    def eval_batch_size(self) -> int:
        return self._facts.eval_batch_size

    @property
    def validation_target_value(self) -> float:
        return self._context.target.value

    @property
    def test_target_value(self) -> float:
        return self._test_target.value

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        return _reached(self._context.target, eval_result, Split.VALIDATION)

    def has_reached_test_target(self, eval_result: Mapping[str, float]) -> bool:
        return _reached(self._test_target, eval_result, Split.TEST)

    @property
    def _test_target(self) -> Target:
        if self._facts.test_target is None:
            raise SubmissionError("This workload has no test split, so no test target either.")
        return self._facts.test_target

    # ---------------------------------------------------------------- the model

    @property
    def param_shapes(self) -> dict[str, Any]:
        """Name -> `ShapeTuple`, with the names that the container gives."""
        return {name: ShapeTuple(tuple(value.shape)) for name, value in self._facts.container.named_parameters()}

    @property
    def model_params_types(self) -> dict[str, ParamRole]:
        """Name -> what the original derives from the parameter's name."""
        return dict(self._facts.parameter_types)

    def is_output_params(self, param_key: str) -> bool:
        return self._described()[param_key].is_output

    def _described(self) -> dict[str, Parameter]:
        names = (name for name, _ in self._facts.container.named_parameters())
        return dict(zip(names, self._context.parameters, strict=True))

    def init_model_fn(self, rng: Any) -> tuple[nn.Module, None]:
        """A freshly initialised model, to look at: what is trained is the one that the submission was given."""
        return self._context.engine.build_model(int(rng[0])), None

    def output_activation_fn(self, logits_batch: Tensor, framework: str = "pytorch") -> Tensor:
        """Predictions from outputs: probabilities, log-probabilities for CTC, the outputs themselves for regression."""
        if framework != "pytorch":
            raise SubmissionError(f"output_activation_fn: {framework=} is not offered. Write 'pytorch'.")
        if self.loss_type is LossType.SOFTMAX_CROSS_ENTROPY:
            return torch.softmax(logits_batch, dim=-1)
        if self.loss_type is LossType.SIGMOID_CROSS_ENTROPY:
            return torch.sigmoid(logits_batch)
        if self.loss_type is LossType.CTC_LOSS:
            return torch.log_softmax(logits_batch, dim=-1)
        return logits_batch

    def __getattr__(self, name: str) -> Any:
        if name in ("eval_model", "_eval_model", "_eval_model_on_split", "_build_input_queue"):
            raise SubmissionError(
                f"workload.{name} is not offered: evaluations and their data belong to the harness. "
                "Past results are in `eval_results`."
            )
        raise AttributeError(
            f"AlgoPerf's workload.{name} is not offered here; docs/existing-submissions.md lists what is."
        )


def _whole(seconds: float) -> float:
    """An int, as in the original, where the value is one."""
    return int(seconds) if seconds == int(seconds) else seconds


def _reached(target: Target, eval_result: Mapping[str, float], split: Split) -> bool:
    return target.reached(float(eval_result[f"{split.prefix}/{target.metric}"]))
