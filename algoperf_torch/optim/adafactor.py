"""Adafactor (Shazeer and Stern, 2018, arXiv:1804.04235, algorithms 4 to 6), as AlgoPerf's baseline sets it up.

The second moment of a tensor with two or more dimensions is kept as its row and column means over the last two of them.
The update is clipped at a root mean square of `clip_threshold`, and only then enters the momentum `beta1` (0: none).
Weight decay is decoupled, multiplied by the scheduled learning rate, and hits every parameter.

Options of the paper that the baseline leaves off: `decay_rate` (the second moment decays by 1 - t^decay_rate instead of
Adam's bias-corrected beta2) and `scale_parameter` (the learning rate is multiplied by the root mean square of the
parameter, at least 1e-3). With both and beta1 = 0 this is `torch.optim.Adafactor` without its limit on lr.

Search space: points inside the range of AlgoPerf's baseline (learning rate 1e-4 to 1e-2, 1 - beta1 0.01 to 0.45, weight
decay 1e-3 to 1, warm-up 0.05).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from algoperf_torch.kernels.adafactor import adafactor_matrices_, adafactor_vectors_
from algoperf_torch.kernels.launch import MatrixTable
from algoperf_torch.optim.arithmetic import Scalar, bias_correction, state_dtype, zeros_for
from algoperf_torch.optim.base import BaseOptimizer, require_fraction, require_non_negative, require_positive
from algoperf_torch.optim.fused import FusedUpdate

SMALLEST_SQUARE = 1e-30  # epsilon 1 of the paper
SMALLEST_SCALE = 1e-3  # epsilon 2


def root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def root_of_second_moment(square: Tensor, moments: tuple[Tensor, ...], decay: Tensor) -> Tensor:
    """Moves the moments (rows and columns, or the whole) towards `square`; returns the root of their estimate of its mean."""
    if len(moments) == 1:
        return moments[0].lerp_(square, 1 - decay).sqrt()
    row, column = moments
    row.lerp_(square.mean(dim=-1), 1 - decay)
    column.lerp_(square.mean(dim=-2), 1 - decay)
    # Roots first: where a row and a column have no gradient, the product would be no float32, and 0 / 0 follow.
    return (row / row.mean(dim=-1, keepdim=True)).sqrt_().unsqueeze(-1) * column.sqrt().unsqueeze(-2)


def adafactor_(
    param: Tensor,
    grad: Tensor,
    moments: tuple[Tensor, ...],
    exp_avg: Tensor | None,
    step: Tensor,
    *,
    lr: Scalar,
    beta1: float,
    beta2: float,
    decay_rate: float | None,
    clip_threshold: float,
    scale_parameter: bool,
    weight_decay: float,
) -> None:
    """One update of one parameter in place; `moments` are (row, column) or (square,), `step` is 1 in the first."""
    dtype = moments[0].dtype
    grad = grad.to(dtype)
    # Adam's bias correction is folded into its decay: beta2 (1 - beta2^(t-1)) / (1 - beta2^t).
    decay = 1 - ((1 - beta2) / bias_correction(beta2, step) if decay_rate is None else step**decay_rate)
    update = grad / root_of_second_moment(grad.square().add_(SMALLEST_SQUARE), moments, decay.to(dtype))
    update.div_((root_mean_square(update) / clip_threshold).clamp_(min=1.0)).mul_(lr)
    if scale_parameter:
        update.mul_(root_mean_square(param.to(dtype)).clamp_(min=SMALLEST_SCALE))
    if exp_avg is not None:
        update = exp_avg.lerp_(update, 1 - beta1)
    param.sub_(update + param * (weight_decay * lr))


class Adafactor(BaseOptimizer):
    """Adam's second moment in the memory of a row and a column."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: Scalar = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.99,
        decay_rate: float | None = None,
        clip_threshold: float = 1.0,
        scale_parameter: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "decay_rate": decay_rate,
            "clip_threshold": clip_threshold,
            "scale_parameter": scale_parameter,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def check_options(self, group: dict[str, Any]) -> None:
        require_non_negative(lr=group["lr"], weight_decay=group["weight_decay"])
        require_positive(clip_threshold=group["clip_threshold"])
        require_fraction(beta1=group["beta1"], beta2=group["beta2"])
        if group["decay_rate"] is not None and not -1 <= group["decay_rate"] < 0:
            raise ValueError(f"Invalid decay_rate={group['decay_rate']}: must be in [-1, 0), or None.")

    def init_state(self, param: Tensor) -> dict[str, Any]:
        if param.dim() < 2:
            return {"square": zeros_for(param)}
        shape, dtype = param.shape, state_dtype(param)
        return {
            "row": param.new_zeros(shape[:-1], dtype=dtype),
            "column": param.new_zeros((*shape[:-2], shape[-1]), dtype=dtype),
        }

    def update_(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if group["beta1"] and "exp_avg" not in state:
            state["exp_avg"] = zeros_for(param)
        adafactor_(
            param,
            grad,
            (state["square"],) if "square" in state else (state["row"], state["column"]),
            state.get("exp_avg"),
            state["step"],
            lr=group["lr"],
            beta1=group["beta1"],
            beta2=group["beta2"],
            decay_rate=group["decay_rate"],
            clip_threshold=group["clip_threshold"],
            scale_parameter=group["scale_parameter"],
            weight_decay=group["weight_decay"],
        )

    def kernel_takes(self, param: Tensor) -> bool:
        return super().kernel_takes(param) and param.dim() <= 2 and param.is_contiguous()

    def update_fused(self, update: FusedUpdate) -> None:
        group = update.group
        names = ("beta1", "beta2", "decay_rate", "scale_parameter", "weight_decay")
        options: dict[str, Any] = {**{name: group[name] for name in names}, "clip": group["clip_threshold"]}
        for param, state in zip(update.params, update.states, strict=True):
            if group["beta1"] and "exp_avg" not in state:
                state["exp_avg"] = zeros_for(param)
        vectors, matrices = update.split(lambda state: "square" in state)
        if vectors:
            adafactor_vectors_.with_table(
                vectors.table("vectors"),
                vectors.params,
                vectors.grads,
                vectors.column("exp_avg") if group["beta1"] else (),
                vectors.column("square"),
                vectors.column("step"),
                vectors.lr,
                vectors.grad_scale,
                **options,
            )
        if matrices:
            adafactor_matrices_.with_table(
                matrices.table("matrices", MatrixTable),
                matrices.params,
                matrices.grads,
                matrices.column("exp_avg") if group["beta1"] else (),
                matrices.column("row"),
                matrices.column("column"),
                matrices.column("step"),
                matrices.lr,
                matrices.grad_scale,
                **options,
            )
