"""Schedule-free AdamW over the parameters of the Transformer."""

from __future__ import annotations

from algoperf_torch.kernels.schedule_free import schedule_free_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import Case, compiled_peer, foreach_peer, update_case, workload_shapes

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
PEERS = {"foreach": foreach_peer(foreach.schedule_free), "compiled": compiled_peer(schedule_free_)}


def cases() -> list[Case]:
    shapes, common = workload_shapes()["wmt"], {"options": OPTIONS, "given": {"lr": 1e-3}}
    return [
        update_case(schedule_free_, "wmt", shapes, **common, peers=PEERS, goal="2 times the best"),
        update_case(
            schedule_free_, "wmt, sgd", shapes, **common, absent=("exp_avg_sqs",),
            peers={"compiled": compiled_peer(schedule_free_)},
        ),
    ]  # fmt: skip
