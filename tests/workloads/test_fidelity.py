"""Every line of docs/fidelity.md names a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`([\w/]+\.py)(?:::(\w+))?` \|$", (ROOT / "docs" / "fidelity.md").read_text(), flags=re.MULTILINE)


def test_every_line_names_a_test():
    lines = [line for line in (ROOT / "docs" / "fidelity.md").read_text().splitlines() if line.startswith("| ")]
    assert len(NAMED) == len(lines) - 1  # without the heading


@pytest.mark.parametrize(("file", "test"), NAMED, ids="::".join)
def test_named_test_exists(file, test):
    paths = [ROOT / "tests" / "workloads" / file, ROOT / "tests" / file]
    (path,) = [path for path in paths if path.is_file()]
    assert not test or f"def {test}(" in path.read_text()
