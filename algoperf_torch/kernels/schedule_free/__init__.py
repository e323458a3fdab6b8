"""Schedule-free AdamW and SGD, with clipping folded in."""

from algoperf_torch.kernels.registry import Update
from algoperf_torch.kernels.schedule_free import reference

schedule_free_ = Update(reference.schedule_free_, mutates=("params", "zs", "exp_avg_sqs"))
