"""`algoperf`: every command can be asked for help, and mistakes are told in one line."""

from __future__ import annotations

import dataclasses
from importlib import import_module

import pytest

from algoperf_torch.cli import COMMANDS, main, usage


def test_usage_names_every_command():
    text = usage()
    for name, command in COMMANDS.items():
        assert f"  {name}" in text
        assert command.help in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_options_and_a_function(name):
    command = COMMANDS[name]
    module = import_module(f"algoperf_torch.{command.module}")
    assert dataclasses.is_dataclass(getattr(module, command.options))
    assert callable(getattr(module, command.main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_its_options(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert f"algoperf {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status"),
    [([], 2), (["--help"], 0), (["-h"], 0), (["--version"], 0), (["data", "--help"], 0), (["data"], 2)],
)
def test_without_a_command(words, status, capsys):
    assert main(words) == status
    assert "algoperf" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["sore"], ["data", "fetch"], ["Run"]])
def test_an_unknown_command_is_told_with_the_known_ones(words, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("algoperf: Unknown command")
    assert "score" in error or "data verify" in error


def test_an_error_of_ours_is_one_line_and_its_exit_status(capsys, tmp_path):
    assert main(["score", str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("algoperf: ")
    assert "nothing" in error
    assert "Traceback" not in error
