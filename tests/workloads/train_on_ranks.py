"""Run by torchrun: a few steps of SGD and an evaluation of several workloads; saves weights and metrics of rank 0."""

import json
import sys
from pathlib import Path

import torch

from algoperf_torch.runner import distributed
from algoperf_torch.runner.engine import build_engine
from algoperf_torch.runner.evaluate import evaluate
from algoperf_torch.workloads.layers import running_statistics, set_dropout
from algoperf_torch.workloads.registry import build_workload

GROUPS, STEPS, LEARNING_RATE = 2, 3, 0.01
BATCHES = {"criteo1tb": 256, "ogbg": 16, "wmt": 8, "finewebedu_lm": 8}  # 4 elsewhere
EVALUATION_BATCHES = {"criteo1tb": 2_048, "ogbg": 512, "wmt": 64, "finewebedu_lm": 512}  # 16 elsewhere

job = json.loads(sys.argv[1])
torch.set_num_threads(1)
ranks = distributed.join("cpu")
results = {}
for name, folder in job["workloads"].items():
    workload = build_workload(name, Path(folder), model_scale="test")
    workload.open()
    size = BATCHES.get(name, 4)
    engine = build_engine(workload, ranks, seed=0, global_batch_size=size, batch_norm_groups=GROUPS, compiled=False)
    set_dropout(engine.model, 0.0)
    make = workload.train_batches(seed=1, global_batch_size=size, rank=ranks.rank, world_size=ranks.world_size)
    losses = []
    for draw in range(STEPS):
        batch = workload.finish_batch(make(draw))
        engine.model.zero_grad()
        loss = engine.loss(engine.forward_compiled(batch), batch, 0.0)
        total, count = ranks.sum_rows(torch.stack([loss.summed.detach(), loss.n_valid]).double())
        (loss.summed * (ranks.world_size / count).float()).backward()
        losses.append(float(total / count))
        with torch.no_grad():
            for parameter in engine.model.parameters():
                parameter -= LEARNING_RATE * parameter.grad
    ranks.average_(running_statistics(engine.model))
    results[name] = {
        "losses": losses,
        "state": {key: value.clone() for key, value in engine.model.state_dict().items()},
        "metrics": evaluate(
            workload,
            engine.model,
            engine.forward_evaluation,
            ranks,
            seed=5,
            eval_batch_size=EVALUATION_BATCHES.get(name, 16),
        ),
    }
if ranks.is_main:
    torch.save(results, job["out"])
distributed.leave()
