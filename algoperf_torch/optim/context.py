"""What a submission may know and call while it trains: `TrainingContext`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from algoperf_torch.errors import SubmissionError
from algoperf_torch.spec import Batch, LossKind, LossOutput, Parameter, ParamRole, Split, Target

EvalResult = tuple[int, Mapping[str, float]]  # (global step, metrics with split prefixes such as `validation/loss`)


@dataclass(frozen=True, kw_only=True)
class OfficialFacts:
    """What AlgoPerf's own interface tells a submission and this one does not: for `interop` only.

    Attributes:
        container: the model under its wrappers, data-parallel and compiled.
        parameter_types: by the container's names; what the reference derives from its parameters' names.
        budget_seconds: of the external ruleset.
        optimizer_seed: of the trial.
        step_seeds: step (from 0) -> the seeds of data selection, update, preparation for the evaluation, evaluation.
    """

    container: nn.Module
    parameter_types: Mapping[str, ParamRole]
    num_examples: Mapping[Split, int]
    eval_batch_size: int
    eval_period_seconds: float
    budget_seconds: float
    test_target: Target | None
    optimizer_seed: tuple[int, int]
    step_seeds: Callable[[int], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Engine:
    """What the runner hands to the context: the callables behind its methods. Not for submissions."""

    forward_compiled: Callable[[Batch], Any]  # data-parallel over the compiled model
    forward_eager: Callable[[Batch], Any]  # the bare model: gradients are this rank's alone
    loss: Callable[[Any, Batch, float], LossOutput]
    elapsed: Callable[[], float]
    build_model: Callable[[int], nn.Module]  # seed -> a freshly initialised model in host memory
    set_batch_norm_update: Callable[[bool], None]
    set_dropout: Callable[[float | None], None]  # None: back to the workload's own rates
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    process_group: dist.ProcessGroup | None = None
    official: OfficialFacts | None = None


@dataclass
class PassCounts:
    """How often the model was used, for the validity report."""

    forward: int = 0
    backward: int = 0


@dataclass(eq=False)
class TrainingContext:
    """The benchmark as a training algorithm sees it. It knows no workload or dataset by name.

    Attributes:
        step_hint: steps that a well-tuned baseline takes within the budget; schedules may be laid out over it.
        budget_seconds: submission time after which the trial ends.
        loss_kind, target: the loss that `loss` computes; name, direction and validation value of the target metric.
        parameters: name, role and output flag of every parameter, keyed by the tensor itself through `role`.
        rank, world_size, device: this process in the data-parallel group.
        generator: random numbers on `device`, equal on all ranks, seeded for this trial.
        data_generator: random numbers in host memory for choosing data, equal on all ranks.
        eval_results: all evaluations so far, (step, metrics), oldest first.
        step: number of steps done.
        num_microbatches: into how many parts `--micro-batch` cuts each batch (1: not at all).
    """

    step_hint: int
    budget_seconds: float
    loss_kind: LossKind
    target: Target
    model: nn.Module
    parameters: Sequence[Parameter]  # in the order of `model.parameters()`
    rank: int
    world_size: int
    device: torch.device
    generator: torch.Generator
    data_generator: torch.Generator
    engine: Engine
    num_microbatches: int = 1
    step: int = 0
    eval_results: list[EvalResult] = field(default_factory=list)
    finished: bool = False
    passes: PassCounts = field(default_factory=PassCounts)
    scalars: list[tuple[int, str, float | Tensor]] = field(default_factory=list)
    _updates_batch_norm: bool = True

    # ---------------------------------------------------------------- facts

    @property
    def elapsed_seconds(self) -> float:
        """Submission time so far, in seconds, as this rank sees it (without waiting for the device)."""
        return self.engine.elapsed()

    @property
    def process_group(self) -> dist.ProcessGroup | None:
        """The group of all ranks; `None` with a single one."""
        return self.engine.process_group

    def role(self, parameter: nn.Parameter) -> Parameter:
        """Name, role and output flag of a parameter of the model. Raises `KeyError` for any other tensor."""
        for known, description in zip(self.model.parameters(), self.parameters, strict=True):
            if known is parameter:
                return description
        raise KeyError("This tensor is not a parameter of the model.")

    # ---------------------------------------------------------------- passes

    def forward(self, batch: Batch, *, update_batch_norm: bool = True, compiled: bool = True) -> Any:
        """Outputs of the model in its current mode, before the output activation.

        Args:
            batch: this rank's examples.
            update_batch_norm: whether running statistics move. Batch statistics normalise in either case.
            compiled: use the compiled, data-parallel model, whose backward averages gradients over the ranks. `False`
                runs the bare model (double backward, `torch.func`): call `all_reduce_gradients` after its backward.
        """
        if update_batch_norm is not self._updates_batch_norm:
            self.engine.set_batch_norm_update(update_batch_norm)
            self._updates_batch_norm = update_batch_norm
        self.passes.forward += 1
        return self.engine.forward_compiled(batch) if compiled else self.engine.forward_eager(batch)

    def loss(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> LossOutput:
        """Loss of this rank's examples: `summed` (scalar), `n_valid` (scalar), `per_example` [batch, ...]."""
        result = self.engine.loss(outputs, batch, label_smoothing)
        if result.summed.requires_grad:
            result.summed.register_hook(self._count_backward)
        return result

    def mean_loss(self, outputs: Any, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """A scalar whose backward yields the gradient of the mean loss over the *global* batch.

        The value is this rank's summed loss times the number of ranks over the global number of valid examples: the
        data-parallel average of the gradients then is the global mean. With one rank it is the mean loss.
        """
        output = self.loss(outputs, batch, label_smoothing)
        return output.summed * (self.world_size / self.sum_over_ranks(output.n_valid))

    def _count_backward(self, _: Tensor) -> None:
        self.passes.backward += 1

    # ---------------------------------------------------------------- distribution

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, backward passes of the compiled model do not average gradients over the ranks."""
        return self.engine.no_sync()

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the ranks; not differentiable. The tensor itself with a single rank."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self.process_group)
        return total

    def all_reduce_gradients(self) -> None:
        """Averages the gradients of all parameters over the ranks, in one message for each dtype."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for grads in by_dtype.values():
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            dist.all_reduce(flat, group=self.process_group)
            flat /= self.world_size
            for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def microbatches(self, batch: Batch, n: int) -> Iterator[Batch]:
        """The batch in `n` equal consecutive parts (views). Inputs that are no tensors cut themselves (`cut(n)`).

        Raises `SubmissionError` where the number of examples is not divisible by `n`.
        """
        whole = {key: value for key, value in batch.items() if not hasattr(value, "cut")}
        size = len(next(_tensors(whole)))
        if n < 1 or size % n:
            raise SubmissionError(f"microbatches: {size} examples per rank cannot be cut into {n} equal parts.")
        own_parts = {key: value.cut(n) for key, value in batch.items() if key not in whole}  # graphs
        for part, start in enumerate(range(0, size, size // n)):
            parts = {key: values[part] for key, values in own_parts.items()}
            yield {**_slice(whole, start, start + size // n, size), **parts}

    # ---------------------------------------------------------------- model and trial

    def set_dropout(self, p: float) -> None:
        """Sets the rate of every dropout layer, without recompiling. Raises `ValueError` outside [0, 1)."""
        self.engine.set_dropout(p)

    @torch.no_grad()
    def reinitialise_model(self, seed: int) -> None:
        """Sets parameters and running statistics back to a fresh initialisation, in place, equal on all ranks.

        Switches stay as they are: the dropout rate, and whether running statistics move.
        """
        fresh = self.engine.build_model(seed).state_dict()  # which leaves the switches out
        for name, old in self.model.state_dict().items():
            old.copy_(fresh[name])

    def log(self, name: str, value: float | Tensor) -> None:
        """Notes a scalar of this step for `measurements.csv`; written, and read from the device, off the clock."""
        self.scalars.append((self.step, name, value.detach() if isinstance(value, Tensor) else value))

    def finish(self) -> None:
        """Ends the trial after this step, with one last evaluation if time remains."""
        self.finished = True


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _slice(value: Any, start: int, stop: int, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[start:stop] if value.dim() and len(value) == size else value
    if isinstance(value, dict):
        return {key: _slice(item, start, stop, size) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_slice(item, start, stop, size) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_slice(item, start, stop, size) for item in value)
    return value
