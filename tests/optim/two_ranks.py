"""Run by torchrun: trains submissions on the tiny problem, one after the other, and saves the weights of all ranks."""

import json
import sys

import tiny
import torch
import torch.distributed as dist

from algoperf_torch.runner.submissions import load_submission
from algoperf_torch.spec import Hyperparameters

job = json.loads(sys.argv[1])
dist.init_process_group("gloo")
results = {}
for reference in job["references"]:
    torch.manual_seed(0)
    context = tiny.build_context()
    submission = load_submission(reference)
    algorithm = submission.algorithm.from_context(context.model, Hyperparameters(job["hyperparameters"]), context)
    stream = tiny.build_stream(context)
    tiny.train(algorithm, context, stream, job["steps"], evaluate_every=job["evaluate_every"])
    algorithm.prepare_for_eval()
    weights = tiny.flat(context.model)
    everywhere = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, weights)
    algorithm.resume_training()
    algorithm.state_dict()
    results[reference] = {"weights": everywhere, "position": stream.position}
if dist.get_rank() == 0:
    torch.save(results, job["out"])
dist.destroy_process_group()
