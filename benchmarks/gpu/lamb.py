"""LAMB over the parameters of the Transformer."""

from __future__ import annotations

from algoperf_torch.kernels.lamb import lamb_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import Case, compiled_peer, foreach_peer, update_case, workload_shapes

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.1}
PEERS = {"foreach": foreach_peer(foreach.lamb), "compiled": compiled_peer(lamb_)}


def cases() -> list[Case]:
    return [
        update_case(
            lamb_,
            "wmt",
            workload_shapes()["wmt"],
            options=OPTIONS,
            given={"lr": 1e-3},
            read_again=("params", "exp_avgs", "exp_avg_sqs"),
            peers=PEERS,
            goal="2 times the best",
        )
    ]
