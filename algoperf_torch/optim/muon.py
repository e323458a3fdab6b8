"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised by a Newton-Schulz iteration.

Matrices (higher-order tensors as [first dimension, rest]) follow Muon; embeddings, the output layer, norms and biases
follow AdamW, as parameter roles tell; standing alone, the optimizer only sees dimensions. The step of an m x n matrix is
scaled by 0.2 sqrt(max(m, n)) (`adjust_lr="match_rms_adamw"`, Liu et al., 2025, arXiv:2502.16982, section 2.2), so that one
learning rate and weight decay serve both, or by sqrt(max(1, m / n)) (`"original"`). Weight decay is decoupled and hits
every parameter. Matrices of one shape are orthogonalised in one batch.

Search space: learning rates of AdamW (AlgoPerf's Muon submissions use 1e-3 to 1e-2 with spectral scaling), momentum 0.9 to
0.96, weight decays 0 to 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from algoperf_torch.kernels.muon import muon_apply_, muon_momentum_
from algoperf_torch.kernels.newton_schulz import newton_schulz as newton_schulz_kernel
from algoperf_torch.optim.adamw import adamw_, fused_adam
from algoperf_torch.optim.arithmetic import Scalar, zeros_for
from algoperf_torch.optim.base import (
    BaseOptimizer,
    OptimizerAlgorithm,
    require_fraction,
    require_non_negative,
    require_positive,
)
from algoperf_torch.optim.fused import FusedUpdate
from algoperf_torch.spec import ParamRole

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def newton_schulz(matrices: Tensor, *, num_steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The nearly orthogonal factors of a batch of matrices [..., m, n]: singular values between about 0.7 and 1.2.

    A quintic iteration with `COEFFICIENTS`, computed in `dtype` on the shorter side, returned in the dtype given.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrices.dtype)


def scale_of_step(shape: tuple[int, int], adjust_lr: str) -> float:
    """What the learning rate of an m x n matrix is multiplied by."""
    m, n = shape
    return 0.2 * math.sqrt(max(m, n)) if adjust_lr == "match_rms_adamw" else math.sqrt(max(1.0, m / n))


class Muon(BaseOptimizer):
    """Muon for parameters with two or more dimensions, AdamW for the others and for groups with `use_muon=False`."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        ns_steps: int = 5,
        ns_dtype: Literal["bfloat16", "float32"] = "bfloat16",
        adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
            "adjust_lr": adjust_lr,
            "adamw_betas": adamw_betas,
            "adamw_eps": adamw_eps,
            "use_muon": True,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], weight_decay=group["weight_decay"], adamw_eps=group["adamw_eps"])
        require_fraction(momentum=group["momentum"], adamw_betas=group["adamw_betas"])
        require_positive(ns_steps=group["ns_steps"])
        for name, allowed in (("ns_dtype", ("bfloat16", "float32")), ("adjust_lr", ("match_rms_adamw", "original"))):
            if group[name] not in allowed:
                raise ValueError(f"Invalid {name}={group[name]!r}: must be one of {', '.join(allowed)}.")

    def init_state(self, param: Tensor) -> dict[str, Any]:
        use_muon = next(
            group["use_muon"] for group in self.param_groups if any(param is item for item in group["params"])
        )
        names = ("momentum_buffer",) if use_muon and param.dim() >= 2 else ("exp_avg", "exp_avg_sq")
        return {name: zeros_for(param) for name in names}

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for param, grad, state in zip(params, grads, states, strict=True):
            if "momentum_buffer" not in state:
                self._adamw(param, grad, state, group)
                continue
            buffer, momentum = state["momentum_buffer"], group["momentum"]
            grad = grad.to(buffer.dtype)
            buffer.lerp_(grad, 1 - momentum)
            update = grad.lerp(buffer, momentum) if group["nesterov"] else buffer
            matrix = update.reshape(update.shape[0], -1)
            by_shape.setdefault((matrix.shape[0], matrix.shape[1]), []).append((param, matrix))
        for shape, members in by_shape.items():
            dtype = getattr(torch, group["ns_dtype"])
            updates = newton_schulz(torch.stack([m for _, m in members]), num_steps=group["ns_steps"], dtype=dtype)
            scale = scale_of_step(shape, group["adjust_lr"])
            for (param, _), update in zip(members, updates, strict=True):
                step = update.reshape(param.shape) * scale
                param.sub_(step.add_(param, alpha=group["weight_decay"]).mul_(group["lr"]))

    def _adamw(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["adamw_betas"]
        adamw_(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["adamw_eps"],
            weight_decay=group["weight_decay"],
        )

    def kernel_takes(self, param: Tensor) -> bool:
        return super().kernel_takes(param) and param.is_contiguous()

    def update_fused(self, update: FusedUpdate) -> None:
        group = update.group
        matrices, others = update.split(lambda state: "momentum_buffer" in state)
        if others:
            fused_adam(others, betas=group["adamw_betas"], eps=group["adamw_eps"])
        if not matrices:
            return
        batches = matrices.keep("batches", lambda: Batches(matrices.params, group["ns_dtype"], group["adjust_lr"]))
        muon_momentum_.with_table(
            matrices.table("momentum"),
            matrices.column("momentum_buffer"),
            matrices.grads,
            batches.directions,
            matrices.grad_scale,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
        )
        muon_apply_.with_table(
            matrices.table("apply"),
            matrices.params,
            batches.orthogonalised(group["ns_steps"]),
            batches.factors,
            matrices.lr,
            weight_decay=group["weight_decay"],
        )


class Batches:
    """Memory for what the kernels orthogonalise: one batch for every shape of a matrix.

    Attributes:
        directions: a view of its slice of a batch for every parameter, in the parameter's shape.
        factors: what the learning rate of every parameter is multiplied by, 0-d.
    """

    def __init__(self, params: tuple[Tensor, ...], dtype: str, adjust_lr: str) -> None:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for place, param in enumerate(params):
            by_shape.setdefault((param.shape[0], param[0].numel()), []).append(place)
        device = params[0].device
        self._params = params
        self._places = list(by_shape.values())
        self._batches = [
            torch.empty(len(places), *shape, dtype=getattr(torch, dtype), device=device)
            for shape, places in by_shape.items()
        ]
        self.directions = self._of_parameters(self._batches)
        scales = {place: scale_of_step(shape, adjust_lr) for shape, places in by_shape.items() for place in places}
        self.factors = tuple([torch.full((), scales[place], device=device) for place in range(len(params))])

    def orthogonalised(self, num_steps: int) -> tuple[Tensor, ...]:
        """What Newton-Schulz iterations make of `directions`, in the parameters' shapes."""
        return self._of_parameters([newton_schulz_kernel(batch, num_steps) for batch in self._batches])

    def _of_parameters(self, batches: list[Tensor]) -> tuple[Tensor, ...]:
        matrices: dict[int, Tensor] = {}
        for places, batch in zip(self._places, batches, strict=True):
            matrices.update(zip(places, batch.unbind(), strict=True))
        return tuple([matrices[place].view(param.shape) for place, param in enumerate(self._params)])


class MuonAlgorithm(OptimizerAlgorithm):
    """Muon for the hidden matrices, AdamW for the rest, by parameter roles."""

    optimizer_class = Muon

    def param_groups(self) -> Iterable[Any]:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter, description in zip(self.model.parameters(), self.context.parameters, strict=True):
            is_hidden = not description.is_output and description.role is not ParamRole.EMBEDDING
            (matrices if parameter.dim() >= 2 and is_hidden else others).append(parameter)
        groups = [{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}]
        return [group for group in groups if group["params"]]
