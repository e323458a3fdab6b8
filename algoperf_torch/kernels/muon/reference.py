"""Muon before and after its orthogonalisation, over many matrices, in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from algoperf_torch.kernels.arithmetic import computed, write_


def muon_momentum_(
    momenta: Sequence[Tensor],
    grads: Sequence[Tensor],
    directions: Sequence[Tensor],
    grad_scale: Tensor | None = None,
    *,
    momentum: float,
    nesterov: bool = True,
) -> None:
    """Moves the momenta on and writes what is to be orthogonalised.

    `directions` are slices of the batches that `newton_schulz` takes. With g the gradient times `grad_scale`, in float32:

        m = momentum m + (1 - momentum) g        d = momentum m + (1 - momentum) g if nesterov, else m
    """
    for buffer, grad, direction in zip(momenta, grads, directions, strict=True):
        m, g = computed(buffer, grad)
        if grad_scale is not None:
            g = g * grad_scale.to(g)
        m = m.lerp(g, 1 - momentum)
        write_((buffer, direction), (m, m.lerp(g, 1 - momentum) if nesterov else m))


def muon_apply_(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    factors: Sequence[Tensor],
    lr: Tensor,
    *,
    weight_decay: float,
) -> None:
    """p = (1 - lr weight_decay) p - lr factor d, with a factor (0-d) for each matrix that depends on its shape.

    Jordan et al. (2024), "Muon: an optimizer for hidden layers"; Liu et al. (2025), arXiv:2502.16982.
    """
    for param, direction, factor in zip(params, directions, factors, strict=True):
        p, d = computed(param, direction)
        rate = lr.to(p)
        write_((param,), (p * (1 - rate * weight_decay) - rate * factor.to(p) * d,))
