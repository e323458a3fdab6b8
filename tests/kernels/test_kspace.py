from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from algoperf_torch.kernels.kspace import fused, reconstruct, reference

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "metrics-vision.npz"


def draw(batch, width, crop, device):
    generator = torch.Generator().manual_seed(0)
    measured = torch.randn(batch, width, crop, dtype=torch.complex64, generator=generator) + 2
    kept = torch.rand(batch, width, generator=generator) < 0.5
    kept[:, width // 2] = True
    return [tensor.to(device) for tensor in (measured, kept, torch.randn(batch, crop, crop, generator=generator))]


@pytest.mark.parametrize(("width", "crop"), [(7, 7), (9, 4), (40, 33), (74, 48), (75, 48)])
def test_kernel_agrees_with_reference(device, width, crop):
    measured, kept, targets = draw(2, width, crop, device)
    actual = fused.reconstruct(measured, kept, targets)
    exact = reference.reconstruct(measured.to(torch.complex128), kept, targets.double())
    torch.testing.assert_close([x.double() for x in actual], list(exact), rtol=1e-4, atol=1e-5)


def test_golden_slice(device):
    from algoperf_torch.workloads.fastmri.data import columns, kept_columns

    with np.load(GOLDEN) as golden:
        measured = torch.from_numpy(columns(golden["mri_kspace"], crop=48))[None].to(device)
        kept = torch.from_numpy(kept_columns(74, (0, 0)))[None].to(device)
        targets = torch.from_numpy(golden["mri_target"])[None].to(device)
        expected = [
            torch.from_numpy(np.asarray(golden[f"mri_out_{name}"])) for name in ("inputs", "targets", "mean", "std")
        ]
    for implementation in (fused, reference):
        actual = implementation.reconstruct(measured, kept, targets)
        for ours, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(ours[0].cpu(), theirs, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_operator():
    given = draw(2, 9, 4, torch.device("cpu"))
    torch.library.opcheck(reconstruct, given)
    compiled = torch.compile(reconstruct, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), reconstruct(*given), rtol=0, atol=0)
