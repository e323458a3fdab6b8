from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from algoperf_torch.kernels.ssim import fused, reference, ssim

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "metrics-vision.npz"


def draw(shape, device):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(shape, generator=generator)
    b = a + 0.5 * torch.randn(shape, generator=generator)
    mean, std = (torch.rand(shape[0], generator=generator) + 0.5 for _ in range(2))
    volume_max = torch.rand(shape[0], generator=generator) * 3
    volume_max[-1] = 0
    return [tensor.to(device) for tensor in (a, b, mean, std, volume_max)]


@pytest.mark.parametrize("shape", [(2, 7, 7), (2, 20, 71), (1, 15, 140), (3, 33, 8)], ids=str)
def test_kernel_agrees_with_reference(device, shape):
    given = draw(shape, device)
    exact = reference.ssim(*(tensor.double() for tensor in given))
    torch.testing.assert_close(fused.ssim(*given).double(), exact, rtol=1e-4, atol=1e-5)


def test_golden_values(device):
    with np.load(GOLDEN) as golden:
        names = ("ssim_a", "ssim_b", "ssim_mean", "ssim_std", "ssim_volume_max")
        given = [torch.from_numpy(golden[name]).to(device) for name in names]
        expected = torch.from_numpy(golden["ssim_unnormalised"]).to(device)
    for implementation in (fused, reference):
        torch.testing.assert_close(implementation.ssim(*given), expected, rtol=1e-5, atol=2e-6)


def test_operator():
    given = draw((2, 9, 8), torch.device("cpu"))
    torch.library.opcheck(ssim, given)
    compiled = torch.compile(ssim, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), ssim(*given), rtol=0, atol=0)
