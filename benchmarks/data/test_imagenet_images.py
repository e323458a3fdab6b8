"""Images decoded, cropped, flipped and normalised: ours against torchvision's folder data set and transforms.

One thread each, the same pixels for the same crop. Run:
`python -m pytest --benchmark-only benchmarks/data/test_imagenet_images.py -s`.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from algoperf_torch.workloads.imagenet.data import MEAN, STD, normalise, num_draws, training_pixels

IMAGES, WIDTH, HEIGHT = 64, 500, 375  # the size of most images of ImageNet
GOAL = 1.5


def photo(seed: int) -> bytes:
    """A JPEG of about 80 kB, smooth with some grain."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.random((HEIGHT, WIDTH, 3)), (3, 3, 0))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255 + random.normal(0, 7, size=smooth.shape)
    file = io.BytesIO()
    Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_images(race, tmp_path: Path, single_thread):
    files = [photo(seed) for seed in range(IMAGES)]
    (tmp_path / "class").mkdir()
    for number, data in enumerate(files):
        (tmp_path / "class" / f"{number}.jpeg").write_bytes(data)
    draws = np.random.default_rng(0).random((IMAGES, num_draws(augmented=False)))
    buffers = [memoryview(data) for data in files]

    def ours() -> torch.Tensor:
        pixels = np.empty((IMAGES, 3, 224, 224), dtype=np.uint8)
        for number, data in enumerate(buffers):
            pixels[number] = training_pixels(data, draws[number], augmented=False)
        return normalise(torch.from_numpy(pixels))

    transforms = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage()]
    transforms += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    folder = ImageFolder(tmp_path, v2.Compose(transforms))

    def peer() -> torch.Tensor:
        return torch.stack([folder[number][0] for number in range(IMAGES)])

    assert ours().shape == peer().shape
    assert race(ours, peer, unit="images", work=IMAGES) >= GOAL
