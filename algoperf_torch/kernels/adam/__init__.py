"""AdamW, NAdamW and their cautious forms, with clipping and weight averaging folded in."""

from algoperf_torch.kernels.adam import reference
from algoperf_torch.kernels.registry import Update

adam_ = Update(reference.adam_, mutates=("params", "exp_avgs", "exp_avg_sqs", "averages"))
