"""What both speech models are made of: norms that know padding, subsampling, initialisation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from algoperf_torch.spec import ParamRole
from algoperf_torch.workloads.layers import ACTIVATIONS
from algoperf_torch.workloads.librispeech.features import NUM_MELS
from algoperf_torch.workloads.roles import mark_roles


class LayerNorm(nn.Module):
    """Layer norm over the last dimension whose scale is stored as the deviation from 1, so that it starts at 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        mark_roles(self, scale=ParamRole.LAYER_NORM_SCALE, bias=ParamRole.LAYER_NORM_BIAS)

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.bias.shape, 1 + self.scale, self.bias, eps=1e-6)


@torch.library.custom_op("algoperf::sum_over_ranks", mutates_args=())
def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all ranks, differentiable: the gradient is summed over the ranks, too."""
    total = x.clone()
    dist.all_reduce(total)
    return total


sum_over_ranks.register_fake(torch.empty_like)
sum_over_ranks.register_autograd(lambda _, grad: sum_over_ranks(grad.contiguous()))


class MaskedBatchNorm(nn.Module):
    """Batch norm over the valid frames of [batch, frames, channels]; padded frames become 0.

    Statistics are those of groups of `group_size` examples (0, or a batch that it does not divide: one group), or, if
    `synchronised`, of the whole batch over all ranks. Means and biased variances are both averaged into the running
    ones. The scale is stored as its deviation from 1. `update` (a tensor, 1 or 0) switches the running statistics off.
    """

    update: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, *, synchronised: bool = False, eps: float = 1e-3, momentum: float = 1e-3) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        mark_roles(self, scale=ParamRole.BATCH_NORM_SCALE, bias=ParamRole.BATCH_NORM_BIAS)
        self.synchronised, self.eps, self.momentum = synchronised, eps, momentum
        self.group_size = 0
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("update", torch.ones(()), persistent=False)

    def forward(self, x: Tensor, paddings: Tensor) -> Tensor:
        valid = (1 - paddings).unsqueeze(-1)  # [batch, frames, 1]
        if self.training:
            x_groups, mean, var = self._normalise_by(x, valid)
            normalised = ((x_groups - mean) * torch.rsqrt(var + self.eps)).reshape(x.shape)
        else:
            normalised = (x - self.running_mean) * torch.rsqrt(self.running_var + self.eps)
        return (normalised * (1 + self.scale) + self.bias) * valid

    def _normalise_by(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The input as [groups, frames, channels], and each group's mean and variance [groups, 1, channels]."""
        batch = x.shape[0]
        grouped = self.group_size and batch % self.group_size == 0 and not self.synchronised
        groups = batch // self.group_size if grouped else 1
        x, valid = x.reshape(groups, -1, x.shape[-1]), valid.reshape(groups, -1, 1)
        reduce = self.synchronised and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

        def total(values: Tensor) -> Tensor:
            local = values.sum(dim=1, keepdim=True)
            return sum_over_ranks(local) if reduce else local

        count = total(valid).clamp_min(1)
        mean = total(x * valid) / count
        var = total((x - mean).square() * valid) / count
        with torch.no_grad():
            step = self.momentum * self.update
            self.running_mean.lerp_(mean.detach().mean(dim=(0, 1)), step)
            self.running_var.lerp_(var.detach().mean(dim=(0, 1)), step)
        return x, mean, var


def xavier(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
    """Xavier-uniform weight, zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    xavier(layer)
    return layer


class Subsampling(nn.Module):
    """Features [batch, frames, 80] at a quarter of the frame rate: two convolutions of stride 2 and a linear layer.

    Gives [batch, ceil(frames / 4), dim] and the paddings of these frames. The activations, all 0 at 0, come after masking and
    padding: then the next layer keeps just what their gradients need, and compiled code on a CPU stores no booleans, which
    it does one by one.
    """

    def __init__(self, dim: int, activation: str = "relu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1, self.conv2 = nn.Conv2d(1, dim, 3, stride=2), nn.Conv2d(dim, dim, 3, stride=2)
        for convolution in (self.conv1, self.conv2):
            xavier(convolution)
        self.linear = linear(dim * (NUM_MELS // 4), dim)

    def forward(self, x: Tensor, paddings: Tensor) -> tuple[Tensor, Tensor]:
        once, paddings = paddings[:, ::2], paddings[:, ::4]
        x = self.conv1(_pad_same(x.unsqueeze(1))) * (1 - once)[:, None, :, None]  # [batch, dim, frames / 2, bins / 2]
        x = self.conv2(self.activation(_pad_same(x))) * (1 - paddings)[:, None, :, None]
        x = self.activation(x.permute(0, 2, 3, 1).reshape(-1, self.linear.in_features))  # [batch * frames / 4, ...]
        return self.linear(x).view(*paddings.shape, -1), paddings


def _pad_same(x: Tensor) -> Tensor:
    """Zeros for a 3x3 convolution of stride 2 whose output is half the size, rounded up: none before an even size."""
    height, width = x.shape[-2:]
    return functional.pad(x, (width % 2, 1, height % 2, 1))
