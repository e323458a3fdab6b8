"""SGD with Nesterov momentum over the parameters of ResNet-50."""

from __future__ import annotations

import torch

from algoperf_torch.kernels.sgd import sgd_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import Case, compiled_peer, foreach_peer, optimizer_peer, update_case, workload_shapes

OPTIONS = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
PEERS = {
    "torch fused": optimizer_peer(
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True)
    ),
    "foreach": foreach_peer(foreach.sgd),
    "compiled": compiled_peer(sgd_),
}


def cases() -> list[Case]:
    shapes = workload_shapes()["imagenet_resnet"]
    return [update_case(sgd_, "imagenet_resnet", shapes, options=OPTIONS, given={"lr": 0.1}, peers=PEERS)]
