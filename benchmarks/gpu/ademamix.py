"""AdEMAMix over the parameters of the Transformer."""

from __future__ import annotations

from algoperf_torch.kernels.ademamix import ademamix_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import Case, compiled_peer, foreach_peer, update_case, workload_shapes

OPTIONS = {
    "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "alpha": 5.0, "mix_warmup": 0, "eps": 1e-8, "weight_decay": 0.1,
}  # fmt: skip
GIVEN = {"lr": 1e-3}
PEERS = {"foreach": foreach_peer(foreach.ademamix), "compiled": compiled_peer(ademamix_)}


def cases() -> list[Case]:
    shapes = workload_shapes()["wmt"]
    return [update_case(ademamix_, "wmt", shapes, options=OPTIONS, given=GIVEN, peers=PEERS, goal="2 times the best")]
