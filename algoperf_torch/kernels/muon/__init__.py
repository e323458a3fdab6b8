"""Muon's two passes over the parameters, around `newton_schulz`."""

from algoperf_torch.kernels.muon import reference
from algoperf_torch.kernels.registry import Update

muon_momentum_ = Update(reference.muon_momentum_, mutates=("momenta", "directions"))
muon_apply_ = Update(reference.muon_apply_, mutates=("params",))
