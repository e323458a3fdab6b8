"""AdamW over the parameters of each workload and over large tensors; with clipping and averaging; NAdamW and cautious."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from algoperf_torch.kernels.adam import adam_
from benchmarks.gpu import foreach
from benchmarks.gpu.case import (
    ONE_LARGE,
    Case,
    UpdateInputs,
    compiled_peer,
    foreach_peer,
    optimizer_peer,
    update_case,
    workload_shapes,
)

OPTIONS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
GIVEN = {"lr": 1e-3}
FUSED = {"torch fused": optimizer_peer(lambda params: torch.optim.AdamW(params, weight_decay=0.1, fused=True))}


def with_clipping(inputs: UpdateInputs) -> None:
    from algoperf_torch.kernels.adam import fused
    from algoperf_torch.kernels.grad_norm.fused import clip_coefficient

    _, scale = clip_coefficient(inputs.arguments["grads"], 1.0)
    fused.adam_(**inputs.arguments, **inputs.options, grad_scale=scale, table=inputs.table)


def clip_adamw_lerp(inputs: UpdateInputs) -> Callable[[], Any]:
    step = FUSED["torch fused"](inputs)
    params = step.__self__.param_groups[0]["params"]  # type: ignore[attr-defined]
    averages = list(inputs.arguments["averages"])

    def run() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 0.01)

    return run


def cases() -> list[Case]:
    options = {"options": OPTIONS, "given": GIVEN, "absent": ("averages",)}
    rows = [
        update_case(adam_, name, shapes, **options, peers=FUSED, goal="faster than torch fused")
        for name, shapes in workload_shapes().items()
    ]
    rows += [
        update_case(adam_, name, shapes, **options, peers=FUSED, goal="90 % of the copy bandwidth")
        for name, shapes in ONE_LARGE.items()
    ]
    rows.append(update_case(adam_, "100M bfloat16", ONE_LARGE["100M"], **options, dtype=torch.bfloat16))
    wmt = workload_shapes()["wmt"]
    clipped = update_case(
        adam_,
        "wmt, clipped and averaged",
        wmt,
        options=OPTIONS | {"average_decay": 0.99},
        given=GIVEN,
        peers={"clip_grad_norm_ + torch fused + foreach lerp": clip_adamw_lerp},
        read_again=("grads",),
        goal="1.5 times",
    )
    rows.append(replace(clipped, fused=with_clipping))
    peers = {"foreach": foreach_peer(foreach.nadamw), "compiled": compiled_peer(adam_)}
    nesterov = {**options, "options": OPTIONS | {"nesterov": True}}
    rows.append(update_case(adam_, "wmt, nesterov", wmt, **nesterov, peers=peers, goal="2 times the best"))
    cautious = {**options, "options": OPTIONS | {"nesterov": True, "cautious": True}}
    rows.append(
        update_case(
            adam_,
            "wmt, cautious",
            wmt,
            **cautious,
            read_again=("grads", "exp_avgs"),
            peers={"compiled": compiled_peer(adam_)},
        )
    )
    return rows
