"""Adafactor over the matrices and over the vectors of the Transformer."""

from __future__ import annotations

import torch

from algoperf_torch.kernels.adafactor import adafactor_matrices_, adafactor_vectors_
from algoperf_torch.kernels.launch import MatrixTable, TensorTable
from benchmarks.gpu.case import (
    Case,
    UpdateInputs,
    compiled_peer,
    num_bytes,
    optimizer_peer,
    shrunk,
    update_case,
    workload_shapes,
)

OPTIONS = {
    "beta1": 0.9, "beta2": 0.99, "decay_rate": -0.8, "clip": 1.0, "scale_parameter": True, "weight_decay": 0.1,
}  # fmt: skip
FOREACH = optimizer_peer(lambda params: torch.optim.Adafactor(params, lr=0.01, weight_decay=0.1, foreach=True))


def matrices() -> Case:
    """Row and column statistics have shapes of their own, so the inputs are built here."""
    shapes = [shape for shape in workload_shapes()["wmt"] if len(shape) == 2]

    def make(device: torch.device, small: int) -> UpdateInputs:
        chosen = shrunk(shapes, small=small)
        arguments = {
            "params": tuple(torch.randn(shape, device=device) for shape in chosen),
            "grads": tuple(torch.randn(shape, device=device) for shape in chosen),
            "exp_avgs": (),
            "row_vars": tuple(torch.rand(shape[0], device=device) for shape in chosen),
            "col_vars": tuple(torch.rand(shape[1], device=device) for shape in chosen),
            "steps": (torch.full((), 10.0, device=device),) * len(chosen),
            "lr": torch.full((), 0.01, device=device),
        }
        return UpdateInputs(arguments, dict(OPTIONS), MatrixTable(persistent=True))

    def fused(inputs: UpdateInputs) -> None:
        from algoperf_torch.kernels.adafactor import fused

        fused.adafactor_matrices_(**inputs.arguments, **inputs.options, table=inputs.table)

    def least_bytes(inputs: UpdateInputs) -> int:
        """Parameters for their norm, then read and written; gradients for the statistics, the norm and the update."""
        return 3 * num_bytes(*inputs.arguments["params"]) + 3 * num_bytes(*inputs.arguments["grads"])

    return Case(
        name="adafactor/wmt matrices",
        make=make,
        fused=fused,
        peers={"torch foreach": FOREACH, "compiled": compiled_peer(adafactor_matrices_)},
        bytes=least_bytes,
        parameters=UpdateInputs.parameters,
        goal="2 times the best",
    )


def cases() -> list[Case]:
    vectors = update_case(
        adafactor_vectors_,
        "wmt vectors",
        [shape for shape in workload_shapes()["wmt"] if len(shape) == 1],
        options=OPTIONS,
        given={"lr": 0.01},
        absent=("exp_avgs",),
        read_again=("params", "grads", "variances"),
        table=lambda: TensorTable(persistent=True),
        peers={"torch foreach": FOREACH, "compiled": compiled_peer(adafactor_vectors_)},
    )
    return [matrices(), vectors]
