"""Every way to name a submission, and every way to get it wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from algoperf_torch import Hyperparameters, OptimizerAlgorithm, TrainingAlgorithm
from algoperf_torch.errors import SubmissionLoadError, UnknownNameError
from algoperf_torch.optim import registry
from algoperf_torch.optim.nadamw import NAdamW
from algoperf_torch.runner.submissions import load_submission

LION = """
import torch
from algoperf_torch import BaseOptimizer

class Lion(BaseOptimizer):
    def __init__(self, params, lr=1e-4, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    def init_state(self, param):
        return {"momentum": torch.zeros_like(param)}

    def update_(self, param, grad, state, group):
        state["momentum"].lerp_(grad, 1 - group["beta"])
        param.sub_(state["momentum"].sign() * group["lr"])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with `lion.py` in it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "lion.py", LION)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


# ---------------------------------------------------------------- what can be named


@pytest.mark.parametrize("name", registry.algorithm_names())
def test_every_registered_name_loads_and_accepts_its_search_space(name):
    submission = load_submission(name)
    assert (submission.name, submission.reference, submission.is_registered) == (name, name, True)
    assert issubclass(submission.algorithm, TrainingAlgorithm)
    submission.algorithm.check_hyperparameters(Hyperparameters())
    if submission.search_space is not None:
        assert len(submission.search_space) == 5
        for point in submission.search_space:
            submission.algorithm.check_hyperparameters(Hyperparameters(point))


def test_a_registered_optimizer_is_driven():
    algorithm = load_submission("nadamw").algorithm
    assert issubclass(algorithm, OptimizerAlgorithm)
    assert (algorithm.optimizer_class, algorithm.schedule, algorithm.label) == (NAdamW, "cosine", "nadamw")


def test_listing_the_registry_needs_no_torch():
    code = "import sys; from algoperf_torch.optim import registry; registry.algorithm_names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_wrappers_compose():
    submission = load_submission("ema:sam:adamw")
    assert submission.name == "ema_sam_adamw"
    assert [path.name for path in submission.sources] == ["adamw.py", "sam.py", "wrappers.py"]
    submission.algorithm.check_hyperparameters(Hyperparameters(ema_decay=0.9, rho=0.1, lr=0.01))


def test_import_path():
    submission = load_submission("torch.optim:AdamW")
    assert (submission.name, submission.is_registered) == ("torch.optim_AdamW", False)
    assert submission.algorithm.optimizer_class is torch.optim.AdamW
    assert submission.algorithm.schedule == "constant"
    assert submission.search_space is None


def test_import_path_in_the_working_folder(folder):
    write(folder / "kit" / "__init__.py", "")
    write(folder / "kit" / "helper.py", "x = 1")
    write(folder / "kit" / "lion.py", "from . import helper\n" + LION)
    submission = load_submission("kit.lion:Lion")
    assert submission.name == "kit.lion_Lion"
    assert {path.name for path in submission.sources} == {"__init__.py", "helper.py", "lion.py"}


@pytest.mark.parametrize("reference", ["lion.py:Lion", "lion.py", "./lion.py:Lion"])
def test_file(folder, reference):
    submission = load_submission(reference, schedule="cosine")
    assert submission.sources == (folder / "lion.py",)
    assert submission.algorithm.schedule == "cosine"
    assert submission.algorithm.optimizer_class.__name__ == "Lion"
    assert submission.name in ("lion_Lion", "lion")


def test_file_with_modules_and_search_space_beside_it(folder):
    write(folder / "lion.py", "import part\n" + LION)
    write(folder / "part.py", "import rest.deep\nfrom rest import deep\n")
    write(folder / "rest" / "__init__.py", "")
    write(folder / "rest" / "deep.py", "")
    write(folder / "unrelated.py", "")
    (folder / "lion.json").write_text(json.dumps([{"lr": 0.1}]))
    submission = load_submission("lion.py")
    assert [str(path.relative_to(folder)) for path in submission.sources] == [
        "lion.py",
        "part.py",
        "rest/__init__.py",
        "rest/deep.py",
    ]
    assert submission.search_space == [{"lr": 0.1}]
    assert str(folder) not in sys.path


def test_digest_follows_the_source(folder):
    write(folder / "lion.py", "import piece\n" + LION)
    write(folder / "piece.py", "x = 1")
    first = load_submission("lion.py")
    assert load_submission("lion.py").digest == first.digest
    write(folder / "piece.py", "x = 2")
    assert load_submission("lion.py").digest != first.digest
    assert len(first.digest) == 64


def test_an_algorithm_is_preferred_to_the_optimizer_it_brings(folder):
    algorithm = """
    from algoperf_torch import OptimizerAlgorithm

    class Mine(OptimizerAlgorithm):
        optimizer_class = Lion
        schedule = "linear"
        batch_sizes = {"digits": 32}
    """
    write(folder / "lion.py", LION + textwrap.dedent(algorithm))
    submission = load_submission("lion.py")
    assert (submission.algorithm.__name__, submission.algorithm.schedule) == ("Mine", "linear")
    assert load_submission("lion.py:Mine", schedule="constant").algorithm.schedule == "constant"
    assert load_submission("ema:lion.py").algorithm.batch_sizes == {"digits": 32}


def test_a_registered_name_wins_over_a_folder(folder):
    (folder / "nadamw").mkdir()
    assert load_submission("nadamw").is_registered


def test_file_trains_through_its_context(folder):
    """The classes of a file can be looked up by the name of their module."""
    optimizer_class = load_submission("lion.py").algorithm.optimizer_class
    assert getattr(sys.modules[optimizer_class.__module__], "Lion") is optimizer_class  # noqa: B009


# ---------------------------------------------------------------- what goes wrong

WRONG_FILES = {
    "syntax.py": ("class X(\n", r"/syntax\.py:1: syntax error: '\(' was never closed\.$"),
    "imports.py": (
        "x = 1\nimport nowhere_at_all\n",
        r"failed at .*/imports\.py:2: ModuleNotFoundError: No module named",
    ),
    "raises.py": ("def f():\n    1 / 0\nf()\n", r"failed at .*/raises\.py:2: ZeroDivisionError: division by zero$"),
    "exits.py": ("raise SystemExit(3)\n", r"failed at .*/exits\.py:1: SystemExit: 3$"),
    "nothing.py": ("x = 1\n", "defines neither a TrainingAlgorithm nor a torch.optim.Optimizer"),
    "several.py": (
        "import torch\nclass A(torch.optim.SGD): pass\nclass B(torch.optim.SGD): pass\n",
        r"several candidates: A, B\. Write several\.py:A\.$",
    ),
    "several.py:C": (None, r"several\.py:C: no class 'C' there\. Found: A, B\.$"),
    "several.py:torch": (None, "is of type module, not a class derived from"),
    "abstract.py:Half": (
        "from algoperf_torch import TrainingAlgorithm\nclass Half(TrainingAlgorithm):\n"
        "    @classmethod\n    def from_context(cls, model, hyperparameters, context): return cls()\n",
        "is abstract: it does not define load_state_dict, state_dict, training_step",
    ),
    "undriven.py:Mine": (
        "from algoperf_torch import OptimizerAlgorithm\nclass Mine(OptimizerAlgorithm): pass\n",
        "does not say which optimizer it drives",
    ),
    "text.txt.py": ("\x00", "syntax error|source code"),
}


@pytest.mark.parametrize("reference", WRONG_FILES)
def test_wrong_files_are_one_line_with_the_place(folder, reference):
    for name, (text, _) in WRONG_FILES.items():
        if text is not None:
            (folder / name.partition(":")[0]).write_text(text)
    with pytest.raises(SubmissionLoadError, match=WRONG_FILES[reference][1]) as caught:
        load_submission(reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("missing.py", r"^No file missing\.py \(looked in "),
        ("missing.py:X", r"^No file missing\.py"),
        (".", r"is a folder without a submission\.py\. Name a file in it"),
        ("", "is empty. Known names: adafactor"),
        ("ema:", "nothing after 'ema'. Write, for example, ema:nadamw"),
        ("sam:whole.py", "sam: works around optimizers"),
        ("no_such_module:X", "no module 'no_such_module' in this environment or in "),
        ("torch.no_such_part:X", "no module 'torch.no_such_part'"),
        ("torch.optim:Adamm", "no class 'Adamm' there. Found: ASGD"),
        ("torch.optim:", "no class named. Write, for example, torch.optim:MyOptimizer"),
        ("torch.optim:Optimizer", "is a base class: derive from it"),
        ("torch.nn:Linear", "is the class Linear, not a class derived from"),
        ("a-b:X", "neither a module nor a file"),
        ("broken_space.py", "Cannot read the search space .*broken_space.json"),
        ("odd_space.py", "must be a JSON list of points or an object"),
    ],
)
def test_wrong_references(folder, reference, message):
    write(
        folder / "whole.py",
        """
        from algoperf_torch import TrainingAlgorithm

        class Whole(TrainingAlgorithm):
            from_context = training_step = state_dict = load_state_dict = None
        """,
    )
    for name, text in (("broken_space", "[{"), ("odd_space", "3")):
        write(folder / f"{name}.py", LION)
        (folder / f"{name}.json").write_text(text)
    with pytest.raises(SubmissionLoadError, match=message) as caught:
        load_submission(reference)
    assert "\n" not in str(caught.value)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"Unknown submission 'nadam'\. Must be one of: .*adamw, .*nadamw"):
        load_submission("nadam")
    with pytest.raises(UnknownNameError, match="Unknown schedule 'cosin'"):
        load_submission("nadamw", schedule="cosin")


def test_a_schedule_is_for_optimizers(folder):
    write(
        folder / "whole.py",
        """
        from algoperf_torch import TrainingAlgorithm

        class Whole(TrainingAlgorithm):
            from_context = training_step = state_dict = load_state_dict = None
        """,
    )
    with pytest.raises(SubmissionLoadError, match="is a whole training algorithm and has its own schedule"):
        load_submission("whole.py", schedule="cosine")
