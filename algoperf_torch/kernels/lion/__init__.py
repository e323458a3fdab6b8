"""Lion, with clipping folded in."""

from algoperf_torch.kernels.lion import reference
from algoperf_torch.kernels.registry import Update

lion_ = Update(reference.lion_, mutates=("params", "exp_avgs"))
