"""Distributed Shampoo (Gupta et al., 2018, arXiv:1802.09568; Anil et al., 2020, arXiv:2002.09018; Shi et al., 2023,
arXiv:2309.06497).

A parameter's gradient, as a matrix [first dimension, rest], is cut into blocks of at most `block_size` on a side. Each
block keeps running means of G G^T and G^T G; their inverse fourth roots, refreshed every `precondition_frequency` updates,
multiply the momentum from both sides. The step has the direction of that and, per parameter, the length of Adam's
(grafting). Until `start_preconditioning_step`, and for vectors, the step is Adam's. Weight decay is decoupled and hits
every parameter.

The roots are the work: with a process group each rank computes its share of them, largest first, and broadcasts it. What
every rank holds is the same.

Search space: points inside the range of AlgoPerf's Shampoo baseline (learning rate 1e-4 to 1e-2, 1 - beta1 0.01 to 0.15,
beta2 0.999, weight decay 5e-3 to 1, warm-up 0.05).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from algoperf_torch.optim.adamw import fused_adam
from algoperf_torch.optim.arithmetic import (
    Scalar,
    bias_correction,
    inverse_root,
    move_second_moment_,
    state_dtype,
    zeros_for,
)
from algoperf_torch.optim.base import (
    BaseOptimizer,
    OptimizerAlgorithm,
    require_fraction,
    require_non_negative,
    require_positive,
)
from algoperf_torch.optim.fused import FusedUpdate


def blocks_of(matrix: Tensor, size: int) -> list[Tensor]:
    """The matrix in blocks of at most `size` x `size` (views), row by row."""
    return [block for rows in matrix.split(size) for block in rows.split(size, dim=1)]


def shares(costs: list[int], num_ranks: int) -> list[int]:
    """The rank that each piece of work goes to: the costliest first, always to the least loaded rank."""
    loads, owners = [0] * num_ranks, [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        owners[piece] = loads.index(min(loads))
        loads[owners[piece]] += costs[piece]
    return owners


class Shampoo(BaseOptimizer):
    """Block-wise Shampoo grafted onto Adam.

    `process_group` (an argument, not an option of groups) divides the roots over its ranks; without one all are computed.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        block_size: int = 1024,
        precondition_frequency: int = 20,
        start_preconditioning_step: int = 20,
        root_eps: float = 1e-6,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "block_size": block_size,
            "precondition_frequency": precondition_frequency,
            "start_preconditioning_step": start_preconditioning_step,
            "root_eps": root_eps,
            "updates": 0,
        }
        super().__init__(params, defaults)
        self.process_group = process_group

    def check_options(self, group: dict[str, Any]) -> None:
        names = ("lr", "eps", "weight_decay", "start_preconditioning_step")
        require_non_negative(**{name: group[name] for name in names})
        require_fraction(betas=group["betas"])
        require_positive(**{name: group[name] for name in ("block_size", "precondition_frequency", "root_eps")})

    def init_state(self, param: Tensor) -> dict[str, Any]:
        return {"exp_avg": zeros_for(param), "exp_avg_sq": zeros_for(param)}

    def update_all(
        self, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
    ) -> None:
        group["updates"] += 1
        for param, grad, state in zip(params, grads, states, strict=True):
            if param.dim() >= 2:
                self._accumulate(grad, state, group)
        since = group["updates"] - max(group["start_preconditioning_step"], 1)
        if since >= 0 and since % group["precondition_frequency"] == 0:
            self._refresh_roots(states, group)
        super().update_all(params, grads, states, group)

    def kernel_takes(self, param: Tensor) -> bool:
        return super().kernel_takes(param) and param.dim() < 2  # whose update is AdamW's

    def update_fused(self, update: FusedUpdate) -> None:
        fused_adam(update, betas=update.group["betas"], eps=update.group["eps"])

    def _accumulate(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta2 = group["betas"][1]
        matrix = grad.reshape(grad.shape[0], -1).to(state_dtype(grad))
        for number, block in enumerate(blocks_of(matrix, group["block_size"])):
            for name, side in ((f"left_{number}", block), (f"right_{number}", block.mT)):
                if name not in state:
                    state[name] = side.new_zeros(len(side), len(side))
                move_second_moment_(state[name], side, 1 - beta2)

    def _refresh_roots(self, states: list[dict[str, Any]], group: dict[str, Any]) -> None:
        """Recomputes the inverse fourth roots of all factors, each on one rank. A factor that is not finite keeps its root."""
        work = [(state, name) for state in states for name in state if name.startswith(("left_", "right_"))]
        for state, name in work:
            state.setdefault(f"root_{name}", torch.eye(len(state[name])).to(state[name]))
        num_ranks = 1 if self.process_group is None else self.process_group.size()
        rank = 0 if self.process_group is None else self.process_group.rank()
        owners = shares([len(state[name]) ** 3 for state, name in work], num_ranks)
        for (state, name), owner in zip(work, owners, strict=True):
            if owner == rank:
                mean = state[name] / bias_correction(group["betas"][1], state["step"])
                root = inverse_root(mean, 4, group["root_eps"])
                if root is not None:
                    state[f"root_{name}"].copy_(root)
        if self.process_group is None:
            return
        for source in range(num_ranks):
            roots = [
                state[f"root_{name}"] for (state, name), owner in zip(work, owners, strict=True) if owner == source
            ]
            if roots:
                message = torch.cat([root.flatten() for root in roots])
                dist.broadcast(message, group=self.process_group, group_src=source)
                for root, part in zip(roots, message.split([root.numel() for root in roots]), strict=True):
                    root.copy_(part.view_as(root))

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        exp_avg, exp_avg_sq, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        grad = grad.to(exp_avg.dtype)
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        mean = exp_avg / bias_correction(beta1, step)
        update = mean / (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(group["eps"])
        if "root_left_0" in state:
            direction = self._precondition(mean, state, group["block_size"])
            length = torch.linalg.vector_norm(direction).clamp_min(torch.finfo(direction.dtype).tiny)
            update = direction.mul_(torch.linalg.vector_norm(update) / length)
        param.sub_(update.add_(param, alpha=group["weight_decay"]).mul_(group["lr"]))

    def _precondition(self, mean: Tensor, state: dict[str, Any], block_size: int) -> Tensor:
        matrix = mean.reshape(mean.shape[0], -1)
        result = torch.empty_like(matrix)
        pairs = zip(blocks_of(matrix, block_size), blocks_of(result, block_size), strict=True)
        for number, (block, target) in enumerate(pairs):
            target.copy_(state[f"root_left_{number}"] @ block @ state[f"root_right_{number}"])
        return result.reshape(mean.shape)


class ShampooAlgorithm(OptimizerAlgorithm):
    """Shampoo with the roots divided over the ranks of the trial."""

    optimizer_class = Shampoo

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"process_group": self.context.process_group}
