"""The optimizer that docs/optimizers.md adds, from the page."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from algoperf_torch.optim import registry
from algoperf_torch.optim.lion import Lion
from algoperf_torch.runner.submissions import load_submission

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
BLOCK = re.compile(r"^( *)```(?:python|json)\n(.*?)\n\1```", flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The file, its search space, the line of the registry, the equations, the fused path of Lion."""
    _, section = PAGE.read_text().split("## Adding one")
    return [textwrap.dedent(code) for _, code in BLOCK.findall(section)]


@pytest.fixture
def signum(blocks, monkeypatch, tmp_path):
    file = tmp_path / "signum.py"
    file.write_text(blocks[0])
    spec = importlib.util.spec_from_file_location("algoperf_torch.optim.signum", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(registry.ALGORITHMS, "signum", eval(f"{{{blocks[2]}}}", vars(registry))["signum"])
    (tmp_path / "signum.json").write_text(blocks[1])
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    return module


def test_one_file_and_one_line_make_a_submission(tiny, signum):
    submission = load_submission("signum")
    assert submission.algorithm.optimizer_class is signum.Signum
    for point in submission.search_space:
        submission.algorithm.check_hyperparameters(point)
    context = tiny.build_context()
    algorithm = submission.algorithm.from_context(context.model, {"lr": 3e-3, "warmup_factor": 0.1}, context)
    tiny.train(algorithm, context, tiny.build_stream(context), 100)
    assert tiny.accuracy(context.model) > 0.7


def test_the_equations_are_those_of_the_file(blocks, signum):
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
    equations = {"np": np}
    exec(blocks[3], equations)
    random = np.random.default_rng(0)
    start, grads = random.normal(size=(7, 5)), random.normal(size=(20, 7, 5))
    param = torch.nn.Parameter(torch.tensor(start))
    optimizer = signum.Signum([param], **options)
    for grad in grads:
        param.grad = torch.tensor(grad)
        optimizer.step()
    expected = equations["signum"](start, grads, **options)
    torch.testing.assert_close(param.detach(), torch.tensor(expected))


def test_the_fused_path_shown_is_that_of_lion(blocks):
    assert textwrap.dedent(inspect.getsource(Lion.update_fused)).strip() == blocks[4]
