"""A minute of small pathologies for any training algorithm: what it survives, what it fails, and what that means.

Every problem is a function of a few parameters, trained through an ordinary `TrainingContext`. A problem is passed if some
learning rate of the scan passes it: the question is what the method can do, not whether its default is right.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from algoperf_torch.errors import AlgoPerfError, HyperparameterError
from algoperf_torch.optim.base import OptimizerAlgorithm, TrainingAlgorithm
from algoperf_torch.optim.context import Engine, TrainingContext
from algoperf_torch.optim.hyperparameters import constructor_arguments
from algoperf_torch.spec import Hyperparameters, LossKind, LossOutput, Parameter, ParamRole, Target

STEPS = 400
FACTORS = (1.0, 10.0, 0.1, 100.0, 0.01)  # of the default learning rate, in the order of trying


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A pathology.

    Attributes:
        name, question: what it is, and what is asked.
        failure: what failing it means for a trial.
        start: initial parameters by name.
        loss: (parameters, step, noise generator) -> loss of a step.
        error: parameters -> what is left of the initial error, 1 at the start.
        passes_below: largest error that passes.
    """

    name: str
    question: str
    failure: str
    start: Callable[[], dict[str, Tensor]]
    loss: Callable[[Mapping[str, Tensor], int, torch.Generator], Tensor]
    error: Callable[[Mapping[str, Tensor]], float]
    passes_below: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an algorithm did on one problem: `error` is the best of the scan, `lr` where (NaN: no learning rate known)."""

    problem: str
    passed: bool
    error: float
    lr: float
    meaning: str  # of a failure, or the exception that ended every run


# ---------------------------------------------------------------- the problems


def _saddle(p: Mapping[str, Tensor]) -> Tensor:
    x, y = p["x"].unbind()
    return torch.sub(x**2, y**2) / 2 + y**4 / 4  # minima of -1/4 at y = 1 and -1, a saddle at the origin


@cache
def _hessian() -> Tensor:
    """[20, 20], condition number 10,000, in no particular basis."""
    basis: Tensor = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))[0]
    return basis * torch.logspace(-4, 0, 20) @ basis.mT


def _ill_conditioned(p: Mapping[str, Tensor]) -> Tensor:
    return torch.dot(p["x"], _hessian() @ p["x"])


_ROWS = 64


def _sparse(p: Mapping[str, Tensor], _: int, generator: torch.Generator) -> Tensor:
    rows = torch.multinomial(1.0 / torch.arange(1, _ROWS + 1), 8, replacement=True, generator=generator)
    return (p["table"][rows] - 1).square().mean()


def _mean_square(p: Mapping[str, Tensor]) -> Tensor:
    return p["x"].square().mean()


def _noisy(p: Mapping[str, Tensor], _: int, generator: torch.Generator) -> Tensor:
    return (p["x"] - 3 * torch.randn(p["x"].shape, generator=generator)).square().mean()


def _rescaled(p: Mapping[str, Tensor], step: int, _: torch.Generator) -> Tensor:
    return 1e-3 * p["x"].square().mean() if step < STEPS // 2 else 1e3 * p["y"].square().mean()


def _plateau(p: Mapping[str, Tensor]) -> Tensor:
    square = p["x"].square()
    return (square / (1 + square)).mean()


_BAD_STEP = 20


def _with_nan(p: Mapping[str, Tensor], step: int, _: torch.Generator) -> Tensor:
    goal = 0.0 if step < _BAD_STEP else 3.0  # there is still something to learn afterwards
    return (p["x"] - goal).square().mean() * (math.nan if step == _BAD_STEP else 1.0)


PROBLEMS = (
    Problem(
        name="saddle",
        question="leaves a saddle point from a millionth beside it",
        failure="training may rest on plateaus of the early loss",
        start=lambda: {"x": torch.tensor([1.0, 1e-6])},
        loss=lambda p, *_: _saddle(p),
        error=lambda p: (float(_saddle(p)) + 0.25) / 0.75,
        passes_below=0.05,
    ),
    Problem(
        name="ill-conditioning",
        question="minimises a rotated quadratic of condition number 10,000",
        failure="directions of small curvature are learned late",
        start=lambda: {"x": torch.ones(20)},
        loss=lambda p, *_: _ill_conditioned(p),
        error=lambda p: float(_ill_conditioned(p) / _ill_conditioned({"x": torch.ones(20)})),
        passes_below=0.02,
    ),
    Problem(
        name="sparse gradients",
        question="learns the rows of a table that one batch in forty touches",
        failure="rare tokens and categories are learned late: embeddings suffer",
        start=lambda: {"table": torch.zeros(_ROWS, 4)},
        loss=_sparse,
        error=lambda p: float((p["table"][_ROWS // 2 :] - 1).square().mean()),
        passes_below=0.25,
    ),
    Problem(
        name="noise",
        question="finds the mean under noise of three times the signal",
        failure="the last weights wander: average them, or let the learning rate decay",
        start=lambda: {"x": torch.ones(100)},
        loss=_noisy,
        error=lambda p: float(_mean_square(p)),
        passes_below=0.1,
    ),
    Problem(
        name="scale changes",
        question="learns one layer under a loss of a thousandth, then another under a thousand times the loss",
        failure="the learning rate depends on the size of gradients: tune it for every workload, warm up, clip",
        start=lambda: {"x": torch.ones(10), "y": torch.ones(10)},
        loss=_rescaled,
        error=lambda p: float(torch.maximum(p["x"].square().mean(), p["y"].square().mean())),
        passes_below=0.1,
    ),
    Problem(
        name="plateau",
        question="crosses a flat region into a narrow valley",
        failure="saturated units and badly scaled initial weights are not repaired",
        start=lambda: {"x": torch.full((10,), 10.0)},
        loss=lambda p, *_: _plateau(p),
        error=lambda p: float(_plateau(p)) * 101 / 100,
        passes_below=0.1,
    ),
    Problem(
        name="NaN batch",
        question="survives one batch whose loss is not a number",
        failure="one bad batch ends the trial; skip gradients that are not finite",
        start=lambda: {"x": torch.ones(10)},
        loss=_with_nan,
        error=lambda p: float((p["x"] - 3).square().mean()) / 4,
        passes_below=0.1,
    ),
    Problem(
        name="unused parameters",
        question="trains where a parameter gets no gradient, and a scalar and a 4-d tensor do",
        failure="models with frozen or conditional parts cannot be trained",
        start=lambda: {"x": torch.ones(()), "y": torch.ones(2, 3, 2, 2), "unused": torch.ones(3)},
        loss=lambda p, *_: p["x"].square() + p["y"].square().mean(),
        error=lambda p: float(p["x"].square() + p["y"].square().mean()) / 2,
        passes_below=0.1,
    ),
)


# ---------------------------------------------------------------- running them


class _Parameters(nn.Module):
    def __init__(self, start: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.clone()))


def _context(problem: Problem) -> TrainingContext:
    model = _Parameters(problem.start())
    noise = torch.Generator().manual_seed(0)

    def loss(outputs: Tensor, *_: Any) -> LossOutput:
        return LossOutput(outputs, torch.ones(()), outputs.detach().reshape(1))

    def forward(batch: Any) -> Tensor:
        return problem.loss(dict(model.named_parameters()), int(batch["inputs"]), noise)

    engine = Engine(
        forward_compiled=forward,
        forward_eager=forward,
        loss=loss,
        elapsed=lambda: 0.0,
        build_model=lambda _: _Parameters(problem.start()),
        set_batch_norm_update=lambda _: None,
        set_dropout=lambda _: None,
    )
    return TrainingContext(
        step_hint=STEPS,
        budget_seconds=60.0,
        loss_kind=LossKind.MEAN_SQUARED_ERROR,
        target=Target("loss", 0.0),
        model=model,
        parameters=[Parameter(name=name, role=ParamRole.WEIGHT) for name, _ in model.named_parameters()],
        rank=0,
        world_size=1,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(1),
        data_generator=torch.Generator().manual_seed(2),
        engine=engine,
    )


class _Steps:
    """The training stream: batch number k holds the number k."""

    def __init__(self, position: int = 0) -> None:
        self.position = position

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> dict[str, Any]:
        self.position += 1
        return {"inputs": torch.tensor(self.position - 1), "targets": torch.zeros(())}


def _train(
    algorithm: TrainingAlgorithm, context: TrainingContext, stream: _Steps, steps: int, deadline: float = math.inf
) -> None:
    for _ in range(steps):
        algorithm.training_step(algorithm.select_batch(stream))
        context.step += 1
        if time.perf_counter() > deadline:
            return


def _final_error(
    algorithm_class: type[TrainingAlgorithm], point: Hyperparameters, problem: Problem, deadline: float
) -> float:
    torch.manual_seed(0)
    context = _context(problem)
    algorithm = algorithm_class.from_context(context.model, point, context)
    _train(algorithm, context, _Steps(), STEPS, deadline)
    algorithm.prepare_for_eval()
    with torch.no_grad():
        return problem.error(dict(context.model.named_parameters()))


def scan(
    algorithm_class: type[TrainingAlgorithm], point: Mapping[str, Any]
) -> list[tuple[float, type[TrainingAlgorithm]]]:
    """(learning rate, algorithm with it) for factors of the default; as it is (NaN) where one is given or none known."""
    if issubclass(algorithm_class, OptimizerAlgorithm) and not {"lr", "learning_rate"} & point.keys():
        argument = constructor_arguments(algorithm_class.optimizer_class).get("lr")
        default = algorithm_class.defaults.get("lr", argument.default if argument is not None else None)
        if isinstance(default, int | float):
            rates = [default * factor for factor in FACTORS]
            return [
                (
                    lr,
                    type(
                        algorithm_class.__name__,
                        (algorithm_class,),
                        {"defaults": {**algorithm_class.defaults, "lr": lr}},
                    ),
                )
                for lr in rates
            ]
    return [(math.nan, algorithm_class)]


def run_problem(
    algorithm_class: type[TrainingAlgorithm],
    point: Mapping[str, Any],
    problem: Problem,
    *,
    deadline: float = math.inf,
) -> Outcome:
    """The best of the scan; it ends with the first learning rate that passes, or at the deadline (`perf_counter`).

    Raises `HyperparameterError`.
    """
    best, best_lr, raised = math.inf, math.nan, ""
    for lr, candidate in scan(algorithm_class, point):
        try:
            error = _final_error(candidate, Hyperparameters(point), problem, deadline)
        except HyperparameterError:
            raise
        except Exception as caught:  # noqa: BLE001 - whatever a submission raises is its outcome
            raised = f"{type(caught).__name__}: {(str(caught).splitlines() or ['no message'])[0]}"
            continue
        if error < best:
            best, best_lr = error, lr
        if best < problem.passes_below or time.perf_counter() > deadline:
            break
    passed = best < problem.passes_below
    meaning = "" if passed else (raised if math.isinf(best) and raised else problem.failure)
    return Outcome(problem=problem.name, passed=passed, error=best, lr=best_lr, meaning=meaning)


def run_resume(algorithm_class: type[TrainingAlgorithm], point: Mapping[str, Any]) -> Outcome:
    """Whether a run that is saved and resumed in a new algorithm equals one that was not."""
    problem, steps = PROBLEMS[-1], 20

    def build() -> tuple[TrainingAlgorithm, TrainingContext]:
        torch.manual_seed(0)
        context = _context(problem)
        return algorithm_class.from_context(context.model, Hyperparameters(point), context), context

    difference, meaning = math.inf, "a resumed trial is another trial: `state_dict` misses something"
    try:
        algorithm, context = build()
        stream = _Steps()
        _train(algorithm, context, stream, steps)
        model, state = copy.deepcopy(context.model.state_dict()), copy.deepcopy(algorithm.state_dict())
        _train(algorithm, context, stream, steps)
        resumed, fresh = build()
        fresh.model.load_state_dict(model)
        resumed.load_state_dict(state)
        fresh.step = steps
        _train(resumed, fresh, _Steps(steps), steps)
        pairs = zip(context.model.parameters(), fresh.model.parameters(), strict=True)
        difference = max(float((a - b).detach().abs().max()) for a, b in pairs)
    except AlgoPerfError as error:
        meaning = str(error)
    except Exception as error:  # noqa: BLE001 - whatever a submission raises is its outcome
        meaning = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
    passed = difference == 0.0
    return Outcome(problem="resume", passed=passed, error=difference, lr=math.nan, meaning="" if passed else meaning)


def run_suite(
    algorithm_class: type[TrainingAlgorithm],
    point: Mapping[str, Any],
    *,
    problems: Sequence[Problem] = PROBLEMS,
    seconds: float = 60.0,
) -> list[Outcome]:
    """The resume test and all problems; each gets its share of the seconds that are left, then what it has counts."""
    algorithm_class.check_hyperparameters(Hyperparameters(point))
    end, outcomes = time.perf_counter() + seconds, [run_resume(algorithm_class, point)]
    for number, problem in enumerate(problems):
        now = time.perf_counter()
        deadline = now + (end - now) / (len(problems) - number)
        outcomes.append(run_problem(algorithm_class, point, problem, deadline=deadline))
    return outcomes
