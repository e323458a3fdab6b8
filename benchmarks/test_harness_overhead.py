"""What the harness itself costs: per step with a step that does nothing, and against a bare loop.

Run: `make bench`, or `python -m pytest --benchmark-only benchmarks/test_harness_overhead.py -s`.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from time import perf_counter

import pytest
import torch

from algoperf_torch.optim.base import OptimizerAlgorithm, TrainingAlgorithm
from algoperf_torch.runner.trial import TrialState

LIMIT_MICROSECONDS = 30.0
STEPS = 10_000


class Nothing(TrainingAlgorithm):
    """Notes when each step begins and does nothing else."""

    starts: list[float]

    @classmethod
    def from_context(cls, model, hyperparameters, context):
        algorithm = cls()
        algorithm.starts = []
        return algorithm

    def select_batch(self, stream):
        return None

    def training_step(self, batch):
        self.starts.append(perf_counter())

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_cost_of_a_step_that_does_nothing(benchmark, make_trial):
    """From the start of one step to the start of the next: the whole of the runner's own work."""
    trial = make_trial(Nothing, compile=False, max_steps=STEPS + 2)
    benchmark.pedantic(trial.run, rounds=1, iterations=1)
    starts = trial.algorithm.starts[2:]  # an evaluation lies between the first and the second
    costs = [1e6 * (after - before) for before, after in itertools.pairwise(starts)]
    assert len(costs) >= STEPS - 2
    median = statistics.median(costs)
    benchmark.extra_info.update(median_microseconds=median, p99_microseconds=statistics.quantiles(costs, n=100)[98])
    print(f"\nharness: {median:.2f} us a step (median of {len(costs)}), limit {LIMIT_MICROSECONDS:g}")
    assert median <= LIMIT_MICROSECONDS


@pytest.mark.parametrize("batch_size", [24, 192, 768], ids="batch={}".format)
def test_ratio_to_a_bare_loop(benchmark, make_trial, batch_size):
    """The same compiled model, optimizer and batches, in alternating segments; two bare ones give the noise."""
    algorithm = OptimizerAlgorithm.over(torch.optim.SGD, defaults={"lr": 1e-3}, batch_sizes={"digits": batch_size})
    trial = make_trial(algorithm, max_steps=1)
    step, stream = trial.algorithm.training_step, trial.stream
    stream.resume()
    for _ in range(10):
        step(next(stream))
    started = perf_counter()
    for _ in range(50):
        step(next(stream))
    steps = max(20, int(0.5 / ((perf_counter() - started) / 50)))

    def bare() -> float:
        started = perf_counter()
        for _ in range(steps):
            step(next(stream))
        return perf_counter() - started

    trial.rules = dataclasses.replace(trial.rules, budget=dataclasses.replace(trial.rules.budget, steps=steps))

    def harness() -> float:
        trial.state = TrialState(evaluated=True)
        trial.clock.settle(0.0)
        trial.context.finished = False
        trial.run()
        return trial.state.submission_seconds

    segments: dict[str, list[float]] = {"bare": [], "harness": [], "bare again": []}
    functions = {"bare": bare, "harness": harness, "bare again": bare}

    def rounds() -> None:
        for turn in range(15):
            order = list(functions)
            for name in order[turn % 3 :] + order[: turn % 3]:
                segments[name].append(functions[name]() / steps)

    benchmark.pedantic(rounds, rounds=1, iterations=1)
    milliseconds = 1e3 * statistics.median(segments["bare"])
    ratios = {
        name: statistics.median(a / b for a, b in zip(segments[name], segments["bare"], strict=True))
        for name in ("harness", "bare again")
    }
    benchmark.extra_info.update(step_milliseconds=milliseconds, steps=steps, **ratios)
    print(
        f"\nstep of {milliseconds:.2f} ms: harness / bare {ratios['harness']:.4f}, "
        f"bare / bare {ratios['bare again']:.4f} (medians of 15)"
    )
