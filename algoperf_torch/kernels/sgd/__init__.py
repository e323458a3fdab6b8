"""Stochastic gradient descent with heavy-ball or Nesterov momentum, with clipping folded in."""

from algoperf_torch.kernels.registry import Update
from algoperf_torch.kernels.sgd import reference

sgd_ = Update(reference.sgd_, mutates=("params", "momentum_buffers"))
