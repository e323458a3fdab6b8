"""The moving average of the Transformer's parameters."""

from __future__ import annotations

from algoperf_torch.kernels.ema import ema_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import Case, compiled_peer, foreach_peer, update_case, workload_shapes

PEERS = {"foreach": foreach_peer(foreach.ema), "compiled": compiled_peer(ema_)}


def cases() -> list[Case]:
    return [update_case(ema_, "wmt", workload_shapes()["wmt"], options={}, given={"weight": 0.01}, peers=PEERS)]
