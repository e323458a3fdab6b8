"""Small files in the format of CIFAR-10: stripes whose direction, width and colours tell the class, under noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.spec import Split
from algoperf_torch.workloads.cifar.data import FOLDER, NUM_CLASSES, PIXELS, SIDE, TEST, TRAIN, write_batch

DEFAULT_EXAMPLES = 2_048


def synthesise(folder: Path, *, num_train: int, seed: int) -> dict[str, int]:
    """Writes the six batches and returns the number of examples by split; the others have a quarter of `num_train`."""
    random = np.random.Generator(np.random.Philox(key=seed))
    num_other = max(1, num_train // 4)
    (folder / FOLDER).mkdir()
    colours = random.uniform(0.2, 0.8, size=(NUM_CLASSES, 2, 3))  # [class, dark or bright stripe, red green blue]
    sizes = [len(part) for part in np.array_split(np.arange(num_train + num_other), len(TRAIN))]
    for name, size in zip((*TRAIN, *TEST), (*sizes, num_other), strict=True):
        labels = random.integers(0, NUM_CLASSES, size=size)
        title = "testing batch 1 of 1" if name in TEST else f"training batch {name[-1]} of {len(TRAIN)}"
        write_batch(folder / FOLDER / name, draw(colours, labels, random), labels.tolist(), title)
    return {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}


def draw(colours: NDArray[np.float64], labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [n, 3072]: stripes at class-dependent angle and width, at a random place."""
    angle = np.pi * labels / NUM_CLASSES + random.normal(0, 0.1, size=len(labels))
    period = 4.0 + labels % 5  # pixels
    phase = random.uniform(0, 2 * np.pi, size=len(labels))
    y, x = np.mgrid[:SIDE, :SIDE]
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    bright = 0.5 + 0.5 * np.sin(2 * np.pi * along / period[:, None, None] + phase[:, None, None])
    mixed = colours[labels][..., None, None]  # [n, 2, 3, 1, 1]
    images = mixed[:, 0] + (mixed[:, 1] - mixed[:, 0]) * bright[:, None]
    images = images + random.normal(0, 0.2, size=images.shape)
    pixels: NDArray[np.uint8] = (255 * images.clip(0, 1)).astype(np.uint8)
    return pixels.reshape(len(labels), PIXELS)
