import json
import subprocess
import sys

import pytest

from algoperf_torch.errors import UnknownNameError
from algoperf_torch.versions import load_version, version_names
from algoperf_torch.workloads.listing import ListOptions, main
from algoperf_torch.workloads.registry import workload_names, workload_spec


def test_json_lists_every_workload(capsys):
    assert main(ListOptions(json=True)) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == workload_names()
    for entry in entries:
        spec = workload_spec(entry["name"])
        assert entry["base"] == spec.base
        assert entry["parameters"] == spec.num_parameters
        assert entry["metric"] in entry["metrics"]
        assert entry["examples"]["train"] == spec.num_train
        for name in version_names():
            terms = load_version(name).workloads.get(spec.name)
            assert (name in entry["versions"]) == (terms is not None)
            if terms is not None:
                assert entry["versions"][name]["validation_target"] == terms.validation_target
                assert entry["versions"][name]["budget_seconds"] == terms.budget_seconds


def test_every_workload_has_terms_in_some_version_with_its_own_metric():
    for name in workload_names():
        terms = [load_version(version).workloads.get(name) for version in version_names()]
        assert any(terms), name
        assert {term.metric for term in terms if term} == {workload_spec(name).metric}


def test_table_names_every_workload_in_full(capsys):
    assert main(ListOptions()) == 0
    text = capsys.readouterr().out
    for name in workload_names():
        assert f" {name} " in text
    assert "13,754" in text


def test_one_version(capsys):
    assert main(ListOptions(version=("local",))) == 0
    text = capsys.readouterr().out
    assert "local" in text
    assert "v0.6" not in text


def test_targets_that_differ_are_told_by_version(capsys, tmp_path):
    path = tmp_path / "other.toml"
    path.write_text('inherits = "local"\nname = "other"\n[workloads.digits]\nvalidation_target = 0.5\n')
    assert main(ListOptions(version=("local", str(path)))) == 0
    text = capsys.readouterr().out
    assert "other: 0.5 / " in text


def test_unknown_version():
    with pytest.raises(UnknownNameError, match="'v9'"):
        main(ListOptions(version=("v9",)))


def test_listing_does_not_import_torch():
    code = "import sys; from algoperf_torch.workloads.listing import *; main(ListOptions()); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
