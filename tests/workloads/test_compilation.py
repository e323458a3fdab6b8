"""Every workload compiles to full graphs once: over an epoch and its evaluations, whatever is switched on the way."""

import warnings

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

from algoperf_torch.spec import EVALUATION_SPLITS
from algoperf_torch.workloads.layers import set_batch_norm_group_size, set_batch_norm_update, set_dropout
from algoperf_torch.workloads.registry import build_workload, workload_spec

BATCHES = {  # examples of a global batch, so that an epoch of the small data has a few
    "criteo1tb": 1_024,
    "fastmri": 4,
    "finewebedu_lm": 64,
    "imagenet_resnet": 16,
    "imagenet_vit": 16,
    "librispeech_conformer": 8,
    "librispeech_deepspeech": 8,
    "ogbg": 128,
    "wmt": 32,
}
EVALUATION_BATCH = {"criteo1tb": 2_048, "finewebedu_lm": 512, "ogbg": 512, "wmt": 48}  # 40 elsewhere


def gradients(workload, forward, loss_function, model, batch):
    model.zero_grad()
    loss = loss_function(workload.forward(forward, batch), batch, 0.0)
    (loss.summed / loss.n_valid).backward()
    return float(loss.summed.detach()), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_an_epoch_compiles_once(name, prepared):
    torch._dynamo.reset()
    workload = build_workload(name, prepared(workload_spec(name).dataset), model_scale="test")
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    forward, loss = (torch.compile(f, fullgraph=True, dynamic=False, backend=backend) for f in (model, workload.loss))
    set_batch_norm_group_size(model, BATCHES[name] // 2)
    make = workload.train_batches(seed=1, global_batch_size=BATCHES[name], rank=0, world_size=1)
    draws = workload.spec.num_train // BATCHES[name] + 2
    assert draws >= 4
    ragged = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
        for draw in range(draws):
            set_dropout(model, (0.0, 0.1, 0.5)[draw % 3])
            set_batch_norm_update(model, draw % 2 == 0)
            gradients(workload, forward, loss, model.train(), workload.finish_batch(make(draw)))
            if draw not in (0, draws - 1):
                continue
            model.eval()
            size = EVALUATION_BATCH.get(name, 40)
            for split in EVALUATION_SPLITS:
                if not workload.spec.num_examples(split):
                    continue
                ragged.append(workload.spec.num_examples(split) % workload.chunk_size(size) != 0)
                for _, chunk in workload.eval_batches(split, seed=5, eval_batch_size=size):
                    chunk = workload.finish_batch(chunk)
                    with torch.no_grad():
                        sums = workload.metric_sums(workload.forward(forward, chunk), chunk)
                    assert sums.isfinite().all()
    assert any(ragged)  # the last chunk of some split is not full
    assert len(compilations) == 3  # training, its loss, evaluation
    set_dropout(model.train(), 0.0)
    set_batch_norm_update(model, False)
    batch = workload.finish_batch(make(draws))
    (value, found), (expected_value, expected) = (
        gradients(workload, f, g, model, batch) for f, g in ((forward, loss), (model, workload.loss))
    )
    assert len(compilations) == 3
    assert value == pytest.approx(expected_value, rel=1e-6)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()
