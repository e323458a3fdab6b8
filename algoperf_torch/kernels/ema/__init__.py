"""The exponential moving average of weights. `adam_` can do it in its own launch."""

from algoperf_torch.kernels.ema import reference
from algoperf_torch.kernels.registry import Update

ema_ = Update(reference.ema_, mutates=("averages",))
