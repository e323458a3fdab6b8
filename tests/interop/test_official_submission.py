"""Existing AlgoPerf submissions run unmodified: a fixture for every way in which the known ones behave."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from algoperf_torch.errors import Preempted, SubmissionError, SubmissionLoadError
from algoperf_torch.runner.build import batch_size_of
from algoperf_torch.runner.distributed import Ranks
from algoperf_torch.runner.status import Status
from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.workloads.registry import build_workload

SUBMISSIONS = Path(__file__).parent / "submissions"
FIXTURES = sorted(path.name for path in SUBMISSIONS.iterdir() if path.is_dir())
SELF_TUNING = {"eval_reader", "named_tuple_state"}
PER_STEP = {  # batches drawn, forward and backward passes, where not one each
    "queue_inner_steps": (3, 3, 3),
    "sam_style": (1, 2, 2),
    "two_forwards": (1, 4 / 3, 1),
}


def options_of(name):
    more = {"ends_early": {"hparams": ("fraction=0.75",)}, **{key: {"ruleset": "self"} for key in SELF_TUNING}}
    return {"eval_period": 0.6, **more.get(name, {})}


def weights(trial):
    return [parameter.detach().clone() for parameter in trial.engine.model.parameters()]


def module_of(trial) -> ModuleType:
    """The submission's main module."""
    return trial.algorithm.scope._modules[trial.algorithm.scope.entry_name]


# ---------------------------------------------------------------- every fixture


@pytest.mark.parametrize("name", FIXTURES)
def test_trains_and_is_counted(make_trial, name):
    trial = make_trial(SUBMISSIONS / name, **options_of(name))
    before = weights(trial)
    assert trial.run() in (Status.BUDGET_EXHAUSTED, Status.REACHED)
    after = weights(trial)
    assert all(torch.isfinite(value).all() for value in after)
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    steps = trial.state.step - (name == "ends_early")  # whose last step only says that it is the last
    batches, forward, backward = PER_STEP.get(name, (1, 1, 1))
    assert steps == (9 if name == "ends_early" else 12)
    assert trial.stream.position == steps * batches + (name == "ends_early")
    assert trial.state.samples == trial.stream.position * trial.rules.global_batch_size
    assert trial.context.passes.forward == round(steps * forward)
    assert trial.context.passes.backward == steps * backward
    assert not [flag for flag in trial.validity()["flags"] if flag["severity"] == "void"]


@pytest.mark.parametrize("name", FIXTURES)
def test_resumed_equals_uninterrupted(make_trial, release, name, tmp_path):
    whole = make_trial(SUBMISSIONS / name, out=tmp_path / "whole", **options_of(name))
    whole.run()
    first = make_trial(SUBMISSIONS / name, **options_of(name))
    step = first.algorithm.training_step

    def stop_after(batch):
        step(batch)
        first.stop.requested = first.context.step == 6

    first.algorithm.training_step = stop_after
    with pytest.raises(Preempted):
        first.run()
    release(first)
    second = make_trial(SUBMISSIONS / name, **options_of(name))
    assert second.state.step == 7
    second.run()
    for expected, actual in zip(weights(whole), weights(second), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", FIXTURES)
def test_files_of_a_submission_are_its_source(name):
    submission = load_submission(str(SUBMISSIONS / name))
    assert submission.name == name
    assert set(submission.sources) == set((SUBMISSIONS / name).rglob("*.py"))
    assert (submission.search_space is None) == (name in SELF_TUNING | {"batch_size_table"})


# ---------------------------------------------------------------- finding and loading


def test_a_folder_its_parent_and_its_file_are_one_submission(write, tmp_path):
    folder = write()
    for reference in (folder, tmp_path, folder / "submission.py"):
        submission = load_submission(str(reference))
        assert submission.sources == (folder / "submission.py",)
    assert load_submission(str(folder / "submission.py")).name == "mine"
    renamed = (folder / "submission.py").rename(folder / "pytorch_mine.py")
    assert load_submission(str(renamed)).name == "pytorch_mine"


def test_a_parent_of_several_names_them(write, tmp_path):
    write(name="one")
    write(name="two")
    with pytest.raises(SubmissionLoadError, match=r"holds several submissions: .*one, .*two"):
        load_submission(str(tmp_path))


def test_both_package_names_are_one_set_of_modules():
    submission = load_submission(str(SUBMISSIONS / "v06_adamw"))
    with submission.algorithm.scope:
        import algoperf.pytorch_utils as new_utils
        import algoperf.spec as new
        import algorithmic_efficiency.pytorch_utils as old_utils
        import algorithmic_efficiency.spec as old
    assert (new, new_utils) == (old, old_utils)
    assert new.TrainingCompleteError is old.TrainingCompleteError


@pytest.mark.parametrize("name", ["algoperf", "algorithmic_efficiency"])
def test_an_installed_harness_is_neither_used_nor_damaged(write, make_trial, monkeypatch, name):
    real, real_spec = ModuleType(name), ModuleType(f"{name}.spec")
    real.__path__, real.spec = [], real_spec
    monkeypatch.setitem(sys.modules, name, real)
    monkeypatch.setitem(sys.modules, f"{name}.spec", real_spec)
    trial = make_trial(write(f"import {name}.spec as mine\n"), max_steps=2)
    trial.run()
    assert module_of(trial).mine.ForwardPassMode.TRAIN
    assert sys.modules[name] is real
    assert sys.modules[f"{name}.spec"] is real_spec
    assert real.spec is real_spec
    monkeypatch.undo()


def test_modules_are_gone_after_errors(write, make_trial):
    """The fixture of all tests here looks for what is left."""
    with pytest.raises(SubmissionLoadError, match=r"failed at .*submission\.py:\d+: ZeroDivisionError"):
        load_submission(str(write("1 / 0", "one")))
    failing = "def data_selection(*_):\n    import algoperf.spec\n    raise RuntimeError('no more')\n"
    with pytest.raises(SubmissionError, match="no more"):
        make_trial(write(failing, "two")).run()


@pytest.mark.parametrize("installed", [True, False])
def test_absl_is_offered_where_it_is_not_installed(write, monkeypatch, installed):
    import algoperf_torch.interop.official_submission as module

    monkeypatch.setattr(module, "find_spec", lambda name: object() if installed else None)
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "absl"}
    algorithm = load_submission(str(write("from absl import logging\nlogging.info('%d %s', 1, 'a')\n"))).algorithm
    offered = algorithm.scope._offered.get("absl.logging")
    assert (offered is None) == installed
    if not installed:
        assert not [name for name in sys.modules if name.partition(".")[0] == "absl"]
    sys.modules.update(hidden)


def test_a_file_is_one_module_under_all_its_names():
    """`many_roots` compares enum members of a file that it imports by four names, and would fail otherwise."""
    submission = load_submission(str(SUBMISSIONS / "many_roots"))
    with submission.algorithm.scope:
        import archive.leaderboard.external_tuning.many_roots.core.kit.rules as first
        import core.kit.rules as second
        import rules as third
    assert first is second is third
    assert first.__name__.endswith(".core.kit.rules")
    assert first.__spec__.name == first.__name__


def test_a_module_of_the_same_name_elsewhere_is_left_alone(monkeypatch, make_trial):
    other = ModuleType("utils")
    monkeypatch.setitem(sys.modules, "utils", other)
    make_trial(SUBMISSIONS / "many_roots", max_steps=2).run()
    assert sys.modules["utils"] is other
    monkeypatch.undo()


def test_a_folder_above_that_is_called_like_a_library_is_not_that_library(write, tmp_path):
    """`tmp/scipy/mine/submission.py` imports scipy, not its own grandparent."""
    (tmp_path / "scipy").mkdir()
    folder = write("import scipy\nimport scipy.special\nassert scipy.special.gamma(5) == 24\n", "scipy/mine")
    assert load_submission(str(folder)).sources == (folder / "submission.py",)


WRONG = {
    "import optax": r"submission\.py:\d+: needs optax. Submissions that use JAX",
    "from flax import linen": r"needs flax",
    "from algoperf import random_utils": r"of the original harness, only spec and pytorch_utils are here",
    "import algoperf.workloads.mnist": r"of the original harness, only spec and pytorch_utils are here",
    "from algoperf.spec import Nonsense": "algoperf.spec has no name Nonsense here",
    "from algorithmic_efficiency.spec import Nonsense": "algoperf.spec has no name Nonsense here",
    "del update_params, get_batch_size": "does not define get_batch_size, update_params",
    "def update_params(workload, batch): pass": r"update_params cannot be called as AlgoPerf calls it: got an unexpected",
    "def data_selection(workload, queue): pass": r"data_selection cannot be called as AlgoPerf calls it: too many positional",
    "def prepare_for_eval(workload): pass": "prepare_for_eval cannot be called",
}


@pytest.mark.parametrize("code", WRONG)
def test_what_cannot_be_loaded_is_told(write, code):
    with pytest.raises(SubmissionLoadError, match=WRONG[code]) as caught:
        load_submission(str(write(code)))
    assert "\n" not in str(caught.value)


def test_a_submission_has_its_own_schedule(write):
    with pytest.raises(SubmissionLoadError, match="has its own schedule"):
        load_submission(str(write()), schedule="cosine")


# ---------------------------------------------------------------- batch sizes

SIZES = """
def get_batch_size(workload_name):
    sizes = {"wmt": 128, "digits": 32}
    if workload_name == "fastmri":
        raise TypeError("a mistake")
    if workload_name not in sizes:
        raise ValueError(workload_name)
    return sizes[workload_name]
"""


def test_batch_size_falls_back_to_the_base_name_and_then_to_the_reference(write):
    alone = Ranks(0, 1, 0, torch.device("cpu"), None)
    sizes = load_submission(str(write(SIZES))).algorithm.batch_sizes
    found = {name: batch_size_of(build_workload(name), sizes, alone, None) for name in ("wmt", "wmt_post_ln", "ogbg")}
    assert found == {"wmt": 128, "wmt_post_ln": 128, "ogbg": 512}
    with pytest.raises(SubmissionLoadError, match=r"get_batch_size\('fastmri'\) raised TypeError: a mistake"):
        batch_size_of(build_workload("fastmri"), sizes, alone, None)
