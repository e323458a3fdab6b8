"""AdEMAMix, with clipping folded in."""

from algoperf_torch.kernels.ademamix import reference
from algoperf_torch.kernels.registry import Update

ademamix_ = Update(reference.ademamix_, mutates=("params", "exp_avgs", "slow_exp_avgs", "exp_avg_sqs"))
