"""LAMB, with clipping folded in."""

from algoperf_torch.kernels.lamb import reference
from algoperf_torch.kernels.registry import Update

lamb_ = Update(reference.lamb_, mutates=("params", "exp_avgs", "exp_avg_sqs"))
