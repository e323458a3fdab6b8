"""Shared by all tests: golden vectors of the models, small data sets, training loops as short as they can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent / "data"
GOLDEN_FORMS = {  # form -> an array that only its files hold; a test module says which form it reads
    "vision": "input_recipe",
    "speech": "audio_int16",
    "clicks": "in_categorical_int",
    "graphs": "in_n_node",
    "translation": "in_plain_inputs",
    "language": "out_eval_first16",
}


@dataclass(frozen=True)
class Golden:
    """The golden vectors of one workload: arrays, and the sorted shapes of its parameters."""

    workload: str
    arrays: dict[str, np.ndarray]
    shapes: list[tuple[int, ...]]
    param_count: int

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def recipe(self, name: str) -> np.ndarray:
        """The array that a stored NumPy expression gives."""
        return eval(str(self[name]), {"__builtins__": {}}, {"RandomState": np.random.RandomState, "float32": "float32"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=DATA / "golden",
        metavar="DIR",
        help="folder of golden vectors: <workload>.npz and <workload>.shapes.json for any workloads or variants",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for `golden` once for every file of its module's `GOLDEN_FORM` (every file if None)."""
    if "golden_file" in metafunc.fixturenames:
        form = metafunc.module.GOLDEN_FORM
        files = [
            file for file, its_form in golden_files(metafunc.config.getoption("--golden")) if form in (its_form, None)
        ]
        metafunc.parametrize("golden_file", files, ids=[file.stem for file in files], scope="module")


def golden_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, form) of the golden vectors in a folder that are named after a workload of the registry."""
    from algoperf_torch.workloads.registry import workload_names

    files = [file for file in sorted(folder.glob("*.npz")) if file.stem in workload_names()]
    if not files:
        raise pytest.UsageError(f"--golden: no file in {folder} is named after a workload.")
    forms = []
    for file in files:
        with np.load(file, allow_pickle=False) as arrays:
            form = next((form for form, array in GOLDEN_FORMS.items() if array in arrays), None)
        if form is None:
            raise pytest.UsageError(f"--golden: {file} has none of the known forms {sorted(GOLDEN_FORMS)}.")
        forms.append((file, form))
    return forms


@pytest.fixture(scope="module")
def golden(golden_file: Path) -> Golden:
    with np.load(golden_file, allow_pickle=False) as arrays:
        content = dict(arrays)
    shapes = json.loads(golden_file.with_suffix(".shapes.json").read_text())
    return Golden(
        golden_file.stem, content, [tuple(shape) for shape in shapes["shapes"]], param_count=shapes["param_count"]
    )


@pytest.fixture(scope="session")
def fill() -> Callable:
    """Overwrites every parameter of a model with numbers that depend on the parameter's shape alone; returns the model.

    Two models that hold the same shapes then compute the same function, whatever their parameters are called.
    """
    import torch

    def values(shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        phase = 0.61803398875 * sum(place * length for place, length in enumerate(shape, start=1))
        wave = np.sin(12.9898 * np.arange(size, dtype=np.float64) + phase) * 43758.5453123
        wave = 2.0 * (wave - np.floor(wave)) - 1.0
        if len(shape) < 2:
            return (0.5 + 0.25 * wave).reshape(shape).astype(np.float32)
        fan_in = max(size // shape[0], 1)
        return (wave * np.sqrt(3.0 / fan_in)).reshape(shape).astype(np.float32)

    @torch.no_grad()
    def fill_(model: torch.nn.Module) -> torch.nn.Module:
        known: dict[tuple[int, ...], torch.Tensor] = {}
        for parameter in model.parameters():
            shape = tuple(parameter.shape)
            if shape not in known:
                known[shape] = torch.from_numpy(values(shape))
            parameter.copy_(known[shape])
        return model

    return fill_
