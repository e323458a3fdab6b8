from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from algoperf_torch.kernels.crop_resize import crop_resize, fused, reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEIGHTS_WIDTHS = [(9, 14), (20, 17), (6, 5)]
BOXES = [(2, 3, 5, 9), (0, 0, 20, 17), (5, 1, 1, 3)]  # enlarged, shrunk, and one row high


def batch(device):
    random = np.random.RandomState(0)
    images = [random.randint(0, 256, size=(*shape, 3), dtype=np.uint8) for shape in HEIGHTS_WIDTHS]
    starts = np.cumsum([0, *(image.size for image in images[:-1])])
    table = torch.tensor([(start, *shape) for start, shape in zip(starts, HEIGHTS_WIDTHS, strict=True)])
    pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
    flips = torch.tensor([False, True, True])
    return images, [tensor.to(device) for tensor in (pixels, table, torch.tensor(BOXES), flips)]


@pytest.mark.parametrize("size", [1, 8, 17])
def test_kernel_agrees_with_reference(device, size):
    _, given = batch(device)
    actual = fused.crop_resize(*given, size, MEAN, STD)
    torch.testing.assert_close(actual, reference.crop_resize(*given, size, MEAN, STD), rtol=1e-5, atol=2e-5)
    assert actual.is_contiguous(memory_format=torch.channels_last)


def test_reference_is_what_pillow_does():
    """Pillow rounds to whole grey levels, twice."""
    images, given = batch(torch.device("cpu"))
    actual = crop_resize(*given, 8, (0.0,) * 3, (1.0,) * 3) * 255
    for image, (top, left, rows, cols), flip, ours in zip(images, BOXES, given[3].tolist(), actual, strict=True):
        crop = (
            Image.fromarray(image).crop((left, top, left + cols, top + rows)).resize((8, 8), Image.Resampling.BILINEAR)
        )
        theirs = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float()
        torch.testing.assert_close(ours, theirs.flip(2) if flip else theirs, rtol=0, atol=1.1)


def test_operator():
    _, given = batch(torch.device("cpu"))
    torch.library.opcheck(crop_resize, (*given, 8, MEAN, STD))
    compiled = torch.compile(lambda *given: crop_resize(*given, 8, MEAN, STD), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), crop_resize(*given, 8, MEAN, STD), rtol=0, atol=0)
