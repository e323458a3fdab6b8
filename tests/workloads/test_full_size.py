"""One step of every workload at full size, on a reduced batch."""

import pytest
import torch

from algoperf_torch.optim.nadamw import NAdamW
from algoperf_torch.workloads.registry import build_workload, workload_spec

pytestmark = pytest.mark.slow

BATCHES = {  # examples; the rest is as at full scale: lengths, vocabularies, images, tables
    "criteo1tb": 64,
    "fastmri": 2,
    "finewebedu_lm": 1,
    "imagenet_resnet": 2,
    "imagenet_vit": 2,
    "librispeech_conformer": 2,
    "librispeech_deepspeech": 2,
    "ogbg": 16,
    "wmt": 2,
}
NUM_VALUES = 1_000_000  # of a parameter that are compared: a table of 540 million need not be copied


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_one_step(name, prepared):
    workload = build_workload(name, prepared(workload_spec(name).dataset))
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == workload_spec(name).num_parameters
    make = workload.train_batches(seed=0, global_batch_size=BATCHES[name], rank=0, world_size=1)
    batch = workload.finish_batch(make(0))
    # Of criteo's table, parameters and gradients alone take 4.3 GB: no averages beside them.
    optimizer_class = torch.optim.SGD if name == "criteo1tb" else NAdamW
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    before = [parameter.detach().flatten()[:NUM_VALUES].clone() for parameter in model.parameters()]
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = workload.loss(workload.forward(model, batch), batch)
        mean = loss.summed / loss.n_valid
        mean.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        losses.append(float(mean.detach()))
    assert all(0 < value < 1e4 for value in losses)
    # Layers that start at zero hide those before them in the first step, not in the second; a batch reads few rows of a table.
    after = [parameter.detach().flatten()[:NUM_VALUES] for parameter in model.parameters()]
    assert sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) >= 0.9 * len(after)
