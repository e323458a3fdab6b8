"""Names of a submission's files by every root, one module each, none of it left outside the scope."""

from __future__ import annotations

import sys
import textwrap
from importlib import import_module
from types import ModuleType

import pytest

from algoperf_torch.interop.import_scope import ImportScope


@pytest.fixture
def repository(tmp_path):
    """`repository({"a/b.py": source, ...})` writes files and returns their root."""

    def write(files):
        for name, source in files.items():
            path = tmp_path / "repository" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return tmp_path / "repository"

    return write


def imported(scope, *names):
    """The main module, and modules by the names that a submission might use."""
    with scope:
        return scope.import_entry(), *(import_module(name) for name in names)


def test_by_the_path_from_the_repository_that_holds_it(repository):
    root = repository(
        {
            "__init__.py": "raise RuntimeError('not on the way')",
            "algorithms/shared.py": "x = 1",
            "algorithms/mine/submission.py": "from algorithms.mine.part import y\nfrom algorithms.shared import x\n",
            "algorithms/mine/part.py": "from algorithms import shared\nfrom . import other\ny = shared.x + other.z\n",
            "algorithms/mine/other.py": "z = 1",
            "algorithms/theirs/other.py": "raise RuntimeError('nobody asked for it')",
        }
    )
    scope = ImportScope(root / "algorithms" / "mine" / "submission.py", {})
    main, part = imported(scope, "algorithms.mine.part")
    assert (main.x, main.y) == (1, 2)
    assert part.__name__ == f"{main.__package__}.part"
    names = [
        "algorithms/mine/other.py",
        "algorithms/mine/part.py",
        "algorithms/mine/submission.py",
        "algorithms/shared.py",
    ]
    assert scope.sources == tuple(root / name for name in names)
    assert not [name for name in sys.modules if name.startswith(("algorithms", "algoperf_submission_"))]


def test_packages_are_executed_once_and_before_their_modules(repository):
    root = repository(
        {
            "mine/__init__.py": "order = ['mine']",
            "mine/submission.py": "from mine import order\nimport kit.part\nfrom kit import part\norder.append('main')\n",
            "mine/kit/__init__.py": "from mine import order\norder.append('kit')\n",
            "mine/kit/part.py": "from .. import order\norder.append('part')\n",
        }
    )
    (main,) = imported(ImportScope(root / "mine" / "submission.py", {}))
    assert main.order == ["mine", "kit", "part", "main"]


def test_files_that_import_each_other(repository):
    root = repository(
        {
            "mine/submission.py": "import first\nfrom mine.second import two\nresult = (first.one(), two())\n",
            "mine/first.py": "import second\ndef one(): return second.two() - 1\n",
            "mine/second.py": "import mine.first\ndef two(): return 2\n",
        }
    )
    (main,) = imported(ImportScope(root / "mine" / "submission.py", {}))
    assert main.result == (1, 2)


def test_the_scope_can_be_entered_again_and_within_itself(repository):
    root = repository(
        {"mine/submission.py": "import part", "mine/part.py": "", "mine/late.py": "from mine import part"}
    )
    scope = ImportScope(root / "mine" / "submission.py", {})
    main, part = imported(scope, "part")
    for _ in range(2):
        with scope:
            with scope:
                assert import_module("part") is part
            assert import_module("part") is main.part
    assert "part" not in sys.modules


def test_what_had_the_name_before_is_back(repository, monkeypatch):
    root = repository({"mine/submission.py": "import part.inner", "mine/part/inner.py": ""})
    other, inner = ModuleType("part"), ModuleType("part.inner")
    monkeypatch.setitem(sys.modules, "part", other)
    monkeypatch.setitem(sys.modules, "part.inner", inner)
    _, found = imported(ImportScope(root / "mine" / "submission.py", {}), "part.inner")
    assert found is not inner
    assert (sys.modules["part"], sys.modules["part.inner"]) == (other, inner)
    monkeypatch.undo()


def test_offered_modules_come_before_files(repository):
    root = repository(
        {"mine/submission.py": "import offered.part as found", "mine/offered/part.py": "raise RuntimeError"}
    )
    package, part = ModuleType("offered"), ModuleType("offered.part")
    package.__path__ = []
    (main,) = imported(ImportScope(root / "mine" / "submission.py", {"offered": package, "offered.part": part}))
    assert main.found is part
    assert part.__spec__ is None


@pytest.mark.parametrize("name", ["torch", "numpy", "json", "logging", "scipy"])
def test_a_folder_above_does_not_hide_a_library(repository, name):
    root = repository({f"{name}/mine/submission.py": f"import {name} as library\n"})
    (main,) = imported(ImportScope(root / name / "mine" / "submission.py", {}))
    assert main.library is import_module(name)


def test_a_missing_file_is_a_missing_module(repository):
    root = repository({"mine/submission.py": "import part\nimport part.missing\n", "mine/part/__init__.py": ""})
    with pytest.raises(ModuleNotFoundError, match=r"part\.missing"):
        imported(ImportScope(root / "mine" / "submission.py", {}))
    assert not [name for name in sys.modules if name.startswith(("part", "algoperf_submission_"))]
