"""Structural similarity of image pairs, in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 7


def ssim(a: Tensor, b: Tensor, mean: Tensor, std: Tensor, volume_max: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004) [batch] of images [batch, height, width], averaged over 7 x 7 windows.

    Images are first multiplied by `std` and shifted by `mean`, [batch] each; the data range is `volume_max` [batch], or 1
    where that is 0. Variances are those of a sample; the average is clamped to [-1, 1].
    """
    x, y = (image * std[:, None, None] + mean[:, None, None] for image in (a, b))
    data_range = torch.where(volume_max == 0, 1.0, volume_max)[:, None, None]
    c1, c2 = (0.01 * data_range).square(), (0.03 * data_range).square()

    def average(image: Tensor) -> Tensor:
        return functional.avg_pool2d(image[:, None], WINDOW, stride=1)[:, 0]

    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_x, mean_y = average(x), average(y)
    var_x, var_y = sample * (average(x * x) - mean_x.square()), sample * (average(y * y) - mean_y.square())
    covariance = sample * (average(x * y) - mean_x * mean_y)
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    return (above / below).mean(dim=(1, 2)).clamp(-1, 1)
