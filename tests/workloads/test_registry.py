import subprocess
import sys
from dataclasses import fields

import pytest

from algoperf_torch.errors import UnknownNameError
from algoperf_torch.spec import WorkloadSpec
from algoperf_torch.workloads.registry import WORKLOADS, build_workload, workload_names, workload_spec


def test_names_are_sorted_and_their_packages_hold_nothing_else():
    assert workload_names() == sorted(WORKLOADS)
    for package in set(WORKLOADS.values()):
        module = __import__(f"algoperf_torch.workloads.{package}", fromlist=["SPECS"])
        assert set(module.SPECS) == {name for name, its_package in WORKLOADS.items() if its_package == package}


@pytest.mark.parametrize("name", workload_names())
def test_facts_are_consistent(name):
    spec = workload_spec(name)
    assert isinstance(spec, WorkloadSpec)
    assert spec.name == name
    assert workload_spec(spec.base).base == spec.base
    assert list(spec.metrics) == sorted(spec.metrics)
    assert spec.metric in spec.metrics
    assert 0 < spec.batch_size <= spec.num_train
    assert 0 < spec.num_eval_train <= spec.num_train
    assert spec.num_validation > 0
    assert spec.num_parameters


def test_unknown_names():
    for function in (workload_spec, build_workload):
        with pytest.raises(UnknownNameError, match=r"Unknown workload 'digit'. Must be one of: .*digits"):
            function("digit")


def test_building_reads_nothing(tmp_path):
    for name in ("digits", "mnist", "cifar"):
        workload = build_workload(name, tmp_path / "absent")
        assert workload.spec == workload_spec(name)


def test_facts_need_no_torch():
    code = (
        "import sys; from algoperf_torch.workloads.registry import workload_names, workload_spec\n"
        "for name in workload_names(): workload_spec(name)\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spec_is_frozen():
    spec = workload_spec("digits")
    for field in fields(spec):
        with pytest.raises(AttributeError):
            setattr(spec, field.name, None)
