"""Two ranks train and evaluate exactly as one does on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from algoperf_torch.workloads.registry import workload_spec

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("train_on_ranks.py")
NAMES = (
    "criteo1tb",
    "fastmri",
    "finewebedu_lm",
    "imagenet_resnet",
    "imagenet_vit",
    "librispeech_conformer",
    "librispeech_deepspeech",
    "ogbg",
    "wmt",
)


@pytest.fixture(scope="module")
def results(prepared, tmp_path_factory):
    """What one rank and two ranks saved."""
    folder = tmp_path_factory.mktemp("ranks")
    workloads = {name: str(prepared(workload_spec(name).dataset)) for name in NAMES}
    saved = []
    for world_size in (1, 2):
        out = folder / f"{world_size}.pt"
        job = json.dumps({"workloads": workloads, "out": str(out)})
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
        done = subprocess.run(
            [*command, str(SCRIPT), job], env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr[-4000:]
        saved.append(torch.load(out, weights_only=True))
    return saved


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_as_one(results, name):
    one, two = (result[name] for result in results)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert one["losses"][-1] != one["losses"][0]
    for key, value in one["state"].items():
        torch.testing.assert_close(
            two["state"][key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_evaluate_as_one(results, name):
    one, two = (result[name]["metrics"] for result in results)
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, rel=1e-4)
