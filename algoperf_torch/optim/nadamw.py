"""NAdamW: AdamW with Nesterov momentum, as the AlgoPerf baseline defines it (arXiv:2306.07179, section 5; after Dozat, 2016).

The first moment looks one step ahead: beta1 m_t + (1 - beta1) g_t, corrected by 1 - beta1^t. `torch.optim.NAdam` corrects
the momentum by 1 - beta1^(t+1) and anneals beta1 unless told otherwise; late in training the two agree. Weight decay is
decoupled, multiplied by the scheduled learning rate, and hits every parameter.

Search space: the points with which the benchmark's targets were set on its five NAdamW workloads (criteo1tb, imagenet_vit,
librispeech_conformer, librispeech_deepspeech, wmt), every one offered to all workloads.
"""

from __future__ import annotations

from torch import Tensor

from algoperf_torch.optim.adamw import AdamW, fused_adam
from algoperf_torch.optim.arithmetic import Scalar, bias_correction
from algoperf_torch.optim.fused import FusedUpdate


def nadamw_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: Scalar,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One update of one parameter in place; `step` is 1 in the first. All arithmetic is in the dtype of the averages."""
    grad = grad.to(exp_avg.dtype)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (exp_avg_sq / bias_correction(beta2, step)).sqrt_().add_(eps)
    update = exp_avg.lerp(grad, 1 - beta1).div_(bias_correction(beta1, step)).div_(denominator)
    param.sub_(update.add_(param, alpha=weight_decay).mul_(lr))


class NAdamW(AdamW):
    """AdamW with a Nesterov step; its options and state are those of AdamW."""

    rule = staticmethod(nadamw_)

    def update_fused(self, update: FusedUpdate) -> None:
        fused_adam(update, betas=update.group["betas"], eps=update.group["eps"], nesterov=True)
