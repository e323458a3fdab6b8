"""Lion over the parameters of the Transformer."""

from __future__ import annotations

from algoperf_torch.kernels.lion import lion_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import Case, compiled_peer, foreach_peer, update_case, workload_shapes

OPTIONS = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
PEERS = {"foreach": foreach_peer(foreach.lion), "compiled": compiled_peer(lion_)}


def cases() -> list[Case]:
    shapes = workload_shapes()["wmt"]
    return [
        update_case(lion_, "wmt", shapes, options=OPTIONS, given={"lr": 1e-4}, peers=PEERS, goal="2 times the best")
    ]
