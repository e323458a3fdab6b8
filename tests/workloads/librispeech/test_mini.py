"""Model scale mini of the speech workloads: a step and an evaluation on short generated utterances."""

import pytest
import torch

from algoperf_torch.data.prepare import PrepareOptions
from algoperf_torch.data.prepare import main as prepare
from algoperf_torch.data.synth import SynthOptions
from algoperf_torch.data.synth import main as synth
from algoperf_torch.errors import DataError
from algoperf_torch.spec import EVALUATION_SPLITS
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("short")
    synth(SynthOptions(dataset="librispeech", out=root / "raw", examples=32, set=("words=4", "letter_ms=45")))
    prepare(PrepareOptions(dataset="librispeech", raw=root / "raw", out=root / "data", workers=1))
    return root / "data"


@pytest.mark.parametrize("name", ["librispeech_conformer", "librispeech_deepspeech"])
def test_a_step_and_an_evaluation(name, data_dir):
    workload = build_workload(name, data_dir, model_scale="mini")
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    make = workload.train_batches(seed=0, global_batch_size=workload.spec.batch_size, rank=0, world_size=1)
    losses = []
    for _ in range(2):
        batch = workload.finish_batch(make(0))
        assert batch["inputs"][0].shape == (8, 9_600)
        loss = workload.loss(workload.forward(model, batch), batch)
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.summed.detach()))
    assert losses[1] < losses[0]
    model.eval()
    for split in EVALUATION_SPLITS:
        rows = []
        with torch.no_grad():
            for _, batch in workload.eval_batches(split, seed=5):
                batch = workload.finish_batch(batch)
                rows.append(workload.evaluate_chunk(model, lambda chunk: workload.forward(model, chunk), batch))
        found = workload.metrics(torch.stack(rows), split)
        assert found.keys() == set(workload.spec.metrics)
        assert 0 < found["wer"] < 5


def test_batch_norm_keeps_up_with_few_steps():
    for scale, momentum in (("mini", 0.02), ("test", 0.001)):
        model = build_workload("librispeech_conformer", model_scale=scale).build_model()
        assert {module.momentum for module in model.modules() if hasattr(module, "running_mean")} == {momentum}


def test_more_pieces_than_outputs(data_dir, monkeypatch):
    workload = build_workload("librispeech_conformer", data_dir, model_scale="mini")
    monkeypatch.setattr(workload, "model_options", lambda: {"vocabulary_size": 10})
    with pytest.raises(DataError, match="the model 10 outputs"):
        workload.open()
