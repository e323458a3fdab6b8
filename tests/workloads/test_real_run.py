"""From generated raw files to a trained model, for every workload: thirty steps on two ranks, killed on the way."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from algoperf_torch.spec import EVALUATION_SPLITS
from algoperf_torch.workloads.registry import workload_spec

pytestmark = pytest.mark.slow

LEARNING_RATES = {  # of NAdamW at test scale
    "criteo1tb": 3e-3,
    "fastmri": 1e-3,
    "finewebedu_lm": 3e-3,
    "imagenet_resnet": 3e-3,
    "imagenet_vit": 3e-3,
    "librispeech_conformer": 3e-3,
    "librispeech_deepspeech": 3e-3,
    "ogbg": 3e-3,
    "wmt": 3e-3,
}
COMPILED = "criteo1tb"  # tens of seconds a rank; tests/workloads and benchmarks/workloads compile all the others
STEPS, KILLED_AT = 30, 20
SUBMISSION = """
import os
from pathlib import Path

from algoperf_torch import OptimizerAlgorithm
from algoperf_torch.optim.nadamw import NAdamW

class Dying(OptimizerAlgorithm):
    optimizer_class, schedule = NAdamW, "cosine"
    batch_sizes = {}

    def training_step(self, batch):
        super().training_step(batch)
        if self.context.step == int(os.environ["KILLED_AT"]):
            os.kill(os.getpid(), 9)
"""


def rows_of(trial: Path) -> list[dict[str, str]]:
    with (trial / "eval_measurements.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", sorted(LEARNING_RATES))
def test_thirty_steps_on_two_ranks(name, prepared, tmp_path):
    spec = workload_spec(name)
    (tmp_path / "dying.py").write_text(SUBMISSION)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "algoperf_torch.run", "--workload", name, "--submission", f"{tmp_path / 'dying.py'}:Dying"]
    command += ["--name", "nadamw", "--hparams", f"lr={LEARNING_RATES[name]}", "warmup_factor=0.1"]
    command += [
        "--model-scale",
        "test",
        "--data-dir",
        str(prepared(spec.dataset)),
        "--out",
        str(tmp_path),
        "--seed",
        "1",
    ]
    command += ["--max-steps", str(STEPS), "--clock", "steps:1", "--eval-period", "15"]
    if name != COMPILED:
        command.append("--no-compile")

    def run(killed_at: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILLED_AT": str(killed_at)}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=590)

    trial = tmp_path / "nadamw" / "study_0" / f"{name}_pytorch" / "trial_1"
    done = run(KILLED_AT)
    assert done.returncode != 0
    assert (trial / "eval_measurements.csv").is_file(), done.stdout[-2000:] + done.stderr[-4000:]
    before = rows_of(trial)
    assert [int(row["global_step"]) for row in before] == [1, 16]

    done = run(killed_at=-1)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = rows_of(trial)
    assert [int(row["global_step"]) for row in rows] == [1, 16, STEPS]
    assert rows[:2] == before
    state = json.loads((trial / "trial.json").read_text())
    assert state["status"] in ("budget_exhausted", "reached")
    assert state["process"]["world_size"] == 2
    assert not [flag for flag in state["validity"]["flags"] if flag["severity"] == "void"]
    splits = [split for split in EVALUATION_SPLITS if spec.num_examples(split) > 0]
    assert len(splits) == (2 if name == "finewebedu_lm" else 3)
    for split in splits:
        values = {metric: [float(row[f"{split.prefix}/{metric}"]) for row in rows] for metric in spec.metrics}
        loss = values["ctc_loss" if "ctc_loss" in values else "loss"]
        assert loss[0] > loss[1] > loss[2], split
