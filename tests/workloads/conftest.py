"""Shared by the tests of workloads: golden metrics, small prepared data, counts of compilations."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

METRIC_VECTORS = Path(__file__).parents[1] / "data" / "golden" / "metrics-ctr-graph-text"


@pytest.fixture(scope="session")
def metric_vectors() -> SimpleNamespace:
    """Golden vectors of data, metrics and decoding: `arrays` by name, `json` for what is text."""
    with np.load(METRIC_VECTORS.with_suffix(".npz"), allow_pickle=False) as arrays:
        content = dict(arrays)
    return SimpleNamespace(arrays=content, json=json.loads(METRIC_VECTORS.with_suffix(".json").read_text()))


@pytest.fixture(scope="session")
def golden_metrics() -> Callable[[str], dict[str, np.ndarray]]:
    """The arrays of tests/data/golden/metrics-<name>.npz."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(METRIC_VECTORS.with_name(f"metrics-{name}.npz"), allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Callable[[str], Path]:
    """Directory that holds small generated data of a dataset, prepared: made once, through the two commands."""
    made: dict[str, Path] = {}

    def prepare(dataset: str, *settings: str) -> Path:
        if dataset not in made:
            from algoperf_torch.data.prepare import PrepareOptions
            from algoperf_torch.data.prepare import main as prepare_main
            from algoperf_torch.data.synth import SynthOptions
            from algoperf_torch.data.synth import main as synth_main

            root = tmp_path_factory.mktemp(dataset)
            synth_main(SynthOptions(dataset=dataset, out=root / "raw", examples=SYNTH_EXAMPLES[dataset]))
            options = PrepareOptions(dataset=dataset, raw=root / "raw", out=root / "data", workers=1, set=settings)
            prepare_main(options)
            made[dataset] = root / "data"
        return made[dataset]

    return prepare


SYNTH_EXAMPLES = {
    "criteo1tb": 4_600,
    "fastmri": 12,
    "imagenet": 48,
    "librispeech": 24,
    "ogbg": 600,
    "wmt": 400,
    "finewebedu_lm": 200,
}


def sorted_norms(tensors) -> np.ndarray:
    """L2 norms in the order of the sorted shapes, ascending among equal ones."""
    return np.array([norm for _, norm in sorted((tuple(t.shape), float(t.double().norm())) for t in tensors)])


@pytest.fixture(scope="session")
def check_gradients() -> Callable:
    """Compares the loss and the gradient norms of a model with golden ones."""

    def check(model, loss, golden, prefix: str = "", tolerance: float = 1e-4) -> None:
        mean = loss.summed / loss.n_valid
        mean.backward()
        assert float(mean.detach()) == pytest.approx(float(golden[f"{prefix}grad_loss"]), rel=1e-5)
        expected = golden[f"{prefix}grad_norms"]
        found = sorted_norms(p.grad for p in model.parameters())
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-7 * expected.max())

    return check


@pytest.fixture(scope="session")
def check_initialisation() -> Callable:
    """Compares standard deviation, mean and extremes of every tensor with golden ones, as far as two draws can agree."""

    def check(model, golden) -> None:
        tensors = [p.detach() for p in model.parameters()]
        rows = sorted(
            (tuple(t.shape), float(t.std(correction=0)), float(t.mean()), place) for place, t in enumerate(tensors)
        )
        # Constants of one shape all have the deviation 0: their order is that of their values.
        stored = sorted(
            (row[0], *values) for row, values in zip(rows, golden["init_std_mean_min_max"].tolist(), strict=True)
        )
        for (shape, std, mean, place), (_, std_0, mean_0, low_0, high_0) in zip(rows, stored, strict=True):
            tensor = tensors[place]
            error = 7 / tensor.numel() ** 0.5  # seven standard errors
            if tensor.numel() == 1 and mean != mean_0:
                continue  # one draw says nothing of a distribution
            assert abs(std - std_0) <= error * std_0, shape
            assert abs(mean - mean_0) <= 2 * error * std_0 + 1e-12, shape
            for found, expected in ((float(tensor.min()), low_0), (float(tensor.max()), high_0)):
                if tensor.numel() < 1000 or std_0 == 0:
                    continue  # constants are compared by their means
                if abs(expected - mean_0) < 2.6 * std_0:  # a uniform or truncated distribution ends here
                    assert found == pytest.approx(expected, abs=0.05 * std_0), shape
                else:
                    assert 2.3 * std_0 < abs(found - mean_0) < 7 * std_0, shape

    return check


@pytest.fixture
def count_compilations(monkeypatch) -> Callable:
    """`count_compilations(function, *calls)` compiles a function to one graph, calls it, and returns the number of graphs."""
    import torch

    def count(function, *calls) -> int:
        torch._dynamo.reset()
        graphs = 0

        def backend(graph, inputs):
            from torch._dynamo.backends.registry import lookup_backend

            nonlocal graphs
            graphs += 1
            return lookup_backend("aot_eager")(graph, inputs)

        compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
        for call in calls:
            call(compiled)
        torch._dynamo.reset()
        return graphs

    return count
