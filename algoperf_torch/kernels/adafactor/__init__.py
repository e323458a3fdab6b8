"""Adafactor for matrices (factored second moments) and for vectors (full ones), with clipping folded in."""

from algoperf_torch.kernels.adafactor import reference
from algoperf_torch.kernels.registry import Update

adafactor_matrices_ = Update(reference.adafactor_matrices_, mutates=("params", "exp_avgs", "row_vars", "col_vars"))
adafactor_vectors_ = Update(reference.adafactor_vectors_, mutates=("params", "exp_avgs", "variances"))
