"""The rules as written agree with the code and with the versions."""

from pathlib import Path

import pytest

from algoperf_torch.runner.status import TIMED_PHASES, Phase, Status, is_void
from algoperf_torch.versions import load_version

RULES = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")


def table(header):
    """The rows of the table whose header starts so, as lists of cells."""
    lines = RULES[RULES.index(f"| {header} |") :].splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:end]]


def test_every_status_is_in_the_table():
    assert {row[0] for row in table("status")} == {status.value for status in Status}


@pytest.mark.parametrize("row", table("status"), ids=lambda row: row[0])
def test_what_is_void(row):
    for phase in Phase:
        written = row[2] if phase in TIMED_PHASES else row[3]
        assert is_void(Status(row[0]), phase) is (written == "void")


@pytest.mark.parametrize("row", table("version"), ids=lambda row: row[0])
def test_versions(row):
    version = load_version(row[0])
    if version.official:
        assert row[1].startswith(str(len(version.base_workloads)))
        assert ("held-out" in row[1]) is bool(version.held_out_workloads)
        assert row[5].startswith(f"{version.hardware.num_devices} x ")
    assert int(row[2]) == version.tuning.studies
    assert int(row[3]) == version.tuning.external_trials
    assert row[4] == f"x {version.tuning.self_tuning_multiplier:g}"
