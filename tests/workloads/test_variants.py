"""Every image and speech variant compiles to full graphs and learns from a batch, at test scale."""

import warnings

import pytest
import torch

from algoperf_torch.spec import Split
from algoperf_torch.workloads.fastmri import SPECS as FASTMRI
from algoperf_torch.workloads.imagenet import SPECS as IMAGENET
from algoperf_torch.workloads.librispeech import SPECS as LIBRISPEECH
from algoperf_torch.workloads.registry import build_workload, workload_spec

SPECS = {**FASTMRI, **IMAGENET, **LIBRISPEECH}  # the others' models are small enough for the fast tests

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.base != name])
def test_variant_trains_and_evaluates(name, prepared):
    torch._dynamo.reset()
    workload = build_workload(name, prepared(workload_spec(name).dataset), model_scale="test")
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    forward, loss_function = (
        torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
        for function in (model, workload.loss)
    )
    make = workload.train_batches(seed=0, global_batch_size=8, rank=0, world_size=1)
    batch = workload.finish_batch(make(0))
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
        for _ in range(8):
            optimizer.zero_grad()
            loss = loss_function(workload.forward(forward, batch), batch, 0.0)
            mean = loss.summed / loss.n_valid
            mean.backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
            optimizer.step()
            losses.append(float(mean.detach()))
        _, chunk = next(workload.eval_batches(Split.VALIDATION, seed=0, eval_batch_size=16))
        chunk = workload.finish_batch(chunk)
        with torch.no_grad():
            sums = workload.metric_sums(workload.forward(forward.eval(), chunk), chunk)
    assert losses[-1] < losses[0]
    assert sums.isfinite().all()
    torch._dynamo.reset()
