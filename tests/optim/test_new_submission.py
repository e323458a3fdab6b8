"""The starting point that `algoperf new-submission` writes: it loads, trains, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tyro

from algoperf_torch import Hyperparameters, OptimizerAlgorithm
from algoperf_torch.errors import UsageError
from algoperf_torch.optim.new_submission import NewSubmissionOptions, main
from algoperf_torch.runner.submissions import load_submission


def write(directory: Path) -> Path:
    assert main(NewSubmissionOptions(directory=directory)) == 0
    return directory / f"{directory.name}.py"


def test_it_trains_with_every_point_of_its_search_space(tmp_path, tiny, capsys):
    source = write(tmp_path / "my_lion")
    submission = load_submission(str(source))
    assert submission.name == "my_lion"
    assert submission.algorithm.optimizer_class.__name__ == "MyLion"
    assert len(submission.search_space) == 5
    for point in submission.search_space:
        torch.manual_seed(0)
        context = tiny.build_context()
        algorithm = submission.algorithm.from_context(context.model, Hyperparameters(point), context)
        before = tiny.accuracy(context.model)
        tiny.train(algorithm, context, tiny.build_stream(context), 60)
        assert tiny.accuracy(context.model) > before + 0.1
    assert str(source) in capsys.readouterr().out


def test_its_commented_part_works_too(tmp_path, tiny):
    """With the comment signs taken away, the algorithm below the optimizer is what is loaded, and it trains."""
    source = write(tmp_path / "my_lion")
    head, marker, tail = source.read_text().partition("# from algoperf_torch import OptimizerAlgorithm")
    assert marker
    lines = [line.removeprefix("# ").removeprefix("#") for line in (marker + tail).splitlines()]
    source.write_text(head + "\n".join(lines[:-1]))  # the last line is prose
    algorithm_class = load_submission(str(source)).algorithm
    assert issubclass(algorithm_class, OptimizerAlgorithm)
    assert algorithm_class.batch_sizes == {"digits": 64}
    context = tiny.build_context()
    algorithm = algorithm_class.from_context(context.model, Hyperparameters(lr=0.003), context)
    tiny.train(algorithm, context, tiny.build_stream(context), 60, evaluate_every=20)
    assert [group["weight_decay"] for group in algorithm.optimizer.param_groups] == [0.0, 0.0]
    assert tiny.accuracy(context.model) > 0.5


def test_nothing_is_overwritten(tmp_path):
    source = write(tmp_path / "mine")
    source.write_text("precious")
    with pytest.raises(UsageError, match=r"mine\.py exists and is not overwritten"):
        main(NewSubmissionOptions(directory=tmp_path / "mine"))
    assert source.read_text() == "precious"
    source.unlink()
    with pytest.raises(UsageError, match=r"mine\.json exists"):
        main(NewSubmissionOptions(directory=tmp_path / "mine"))
    assert not source.exists()


@pytest.mark.parametrize("name", ["2fast", "a b", "größe"])
def test_names_that_cannot_be_files_of_python_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a Python file"):
        main(NewSubmissionOptions(directory=tmp_path / name))
    assert not (tmp_path / name).exists()


def test_a_dash_becomes_an_underscore(tmp_path):
    main(NewSubmissionOptions(directory=tmp_path / "my-lion"))
    assert (tmp_path / "my-lion" / "my_lion.py").is_file()


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match=r"Cannot write to .*taken"):
        main(NewSubmissionOptions(directory=tmp_path / "taken"))


def test_the_directory_is_a_positional_argument(tmp_path):
    options = tyro.cli(NewSubmissionOptions, args=[str(tmp_path / "mine")])
    assert options.directory == tmp_path / "mine"
