"""Modules whose switches are tensors, so that changing them never recompiles: dropout rate, batch-norm update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Dropout(nn.Module):
    """Dropout whose rate is a tensor. Rate 0 is the exact identity; in evaluation mode nothing is dropped.

    With `whole_channels`, an input [batch, channels, ...] loses whole channels instead of single elements.
    """

    rate: Tensor

    def __init__(self, rate: float = 0.0, *, whole_channels: bool = False) -> None:
        super().__init__()
        self.whole_channels = whole_channels
        self.register_buffer("rate", torch.tensor(float(rate)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if self.whole_channels else x.shape
        draw = torch.rand(shape, device=x.device)  # float32: bfloat16 has 256 values only
        # On a CPU the same without booleans, which compiled code stores one by one there.
        keep = torch.floor(draw - self.rate) + 1 if x.device.type == "cpu" else draw >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate).to(x.dtype))


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over fixed groups of the global batch, for inputs [batch, channels, ...].

    In training mode the batch is cut into groups of `group_size` examples (0, or a batch that it does not divide: one
    group), each normalised by its own mean and biased variance. The running statistics move by `momentum` towards the
    groups' average mean and unbiased variance; that is linear, so averaging them over ranks gives what one rank with the
    whole batch would have. `update` (a tensor, 1 or 0) switches the running statistics off, and their batch counter.

    As in torch, `momentum = None` keeps the plain average over all batches (`torch.optim.swa_utils.update_bn` asks for
    it). Statistics are computed in the dtype of the running ones, whatever the input's.
    """

    update: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.group_size = 0
        self.register_buffer("update", torch.ones(()), persistent=False)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"BatchNorm expects [batch, channels, ...], got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        batch = input.shape[0]
        groups = batch // self.group_size if self.group_size and batch % self.group_size == 0 else 1
        x = input.to(self.running_mean.dtype).reshape(groups, batch // groups, input.shape[1], -1)
        var, mean = torch.var_mean(x, dim=(1, 3), correction=0, keepdim=True)  # [groups, 1, channels, 1]
        normalised = ((x - mean) * torch.rsqrt(var + self.eps)).reshape(input.shape)
        self._move_statistics(mean.detach(), var.detach(), count=x.shape[1] * x.shape[3])
        shape = (1, -1) + (1,) * (input.dim() - 2)
        return (normalised * self.weight.reshape(shape) + self.bias.reshape(shape)).to(input.dtype)

    @torch.no_grad()
    def _move_statistics(self, mean: Tensor, var: Tensor, count: int) -> None:
        self.num_batches_tracked.add_(self.update.to(self.num_batches_tracked.dtype))
        momentum = 1 / self.num_batches_tracked.clamp(min=1) if self.momentum is None else self.momentum
        step = (self.update * momentum).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean.mean(dim=0).flatten(), step)
        self.running_var.lerp_(var.mean(dim=0).flatten() * (count / max(count - 1, 1)), step)


def set_batch_norm_update(model: nn.Module, update: bool) -> None:
    """Whether forward passes in training mode move the running statistics."""
    for module in model.modules():
        if isinstance(getattr(module, "update", None), Tensor):
            module.update.fill_(float(update))  # type: ignore[operator]


def set_batch_norm_group_size(model: nn.Module, group_size: int) -> None:
    """Number of examples that share batch statistics; a Python number, to be set before the model is compiled."""
    for module in model.modules():
        if hasattr(module, "group_size"):
            module.group_size = group_size  # type: ignore[assignment]


def dropout_rates(model: nn.Module) -> list[float]:
    """The rate of every `Dropout`, in module order: what a checkpoint keeps, since a submission may change it."""
    return [float(module.rate) for module in model.modules() if isinstance(module, Dropout)]


def restore_dropout_rates(model: nn.Module, rates: Sequence[float]) -> None:
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer, rate in zip(layers, rates, strict=True):
        layer.rate.fill_(rate)


def set_dropout(model: nn.Module, rate: float) -> None:
    """Sets the rate of every `Dropout` of the model. Raises `ValueError` outside [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"Dropout rate {rate} is outside [0, 1).")
    for module in model.modules():
        if isinstance(module, Dropout):
            module.rate.fill_(rate)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Floating-point buffers that training moves (running means and variances), in module order."""
    persistent: list[Any] = [
        buffer
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]
    return persistent


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": partial(functional.leaky_relu, negative_slope=0.2),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "tanh": torch.tanh,
}

_TRUNCATED_STD = 0.87962566103423978  # standard deviation of a unit normal that is truncated to [-2, 2]


def truncated_normal_(weight: Tensor) -> None:
    """A normal cut at two standard deviations, scaled so that the result has variance 1 / fan-in.

    The fan-in is the product of all dimensions but the first: for a transposed convolution, whose weight is
    [in, out, height, width], that is out * height * width.
    """
    std = (weight.shape[0] / weight.numel()) ** 0.5 / _TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
