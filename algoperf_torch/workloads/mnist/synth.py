"""Small files in the format of MNIST: ten fixed scribbles, moved, dimmed and covered with noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algoperf_torch.spec import Split
from algoperf_torch.workloads.mnist.data import NUM_CLASSES, SIDE, TEST, TRAIN, write_idx

DEFAULT_EXAMPLES = 4_096
SHIFT = 3  # pixels, in every direction


def synthesise(folder: Path, *, num_train: int, seed: int) -> dict[str, int]:
    """Writes the four files and returns the number of examples by split; the others have a quarter of `num_train`."""
    random = np.random.Generator(np.random.Philox(key=seed))
    strokes = scribbles(random)
    num_other = max(1, num_train // 4)
    for names, count in ((TRAIN, num_train + num_other), (TEST, num_other)):
        labels = random.integers(0, NUM_CLASSES, size=count)
        write_idx(folder / names[0], draw(strokes, labels, random))
        write_idx(folder / names[1], labels.astype(np.uint8))
    return {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}


def scribbles(random: np.random.Generator) -> NDArray[np.float64]:
    """float64 [10, 32, 32] in 0 to 1: for each class a closed curve, drawn with a soft pen, with room to move."""
    side = SIDE + 2 * SHIFT
    angle = np.linspace(0, 2 * np.pi, 200)
    harmonics = np.arange(1, 4)
    weights = random.normal(size=(NUM_CLASSES, 2, 2, 3)) / harmonics  # [class, x or y, sine or cosine, harmonic]
    waves = np.stack([np.sin(np.outer(angle, harmonics)), np.cos(np.outer(angle, harmonics))], axis=1)
    curves = np.einsum("tsh,cash->cta", waves, weights)  # [class, point, x or y]
    curves = side / 2 + curves / np.abs(curves).max(axis=(1, 2), keepdims=True) * (SIDE / 2 - 3)
    pixel = np.arange(side)
    distance = [
        ((curve[:, 0, None, None] - pixel[:, None]) ** 2 + (curve[:, 1, None, None] - pixel) ** 2).min(axis=0)
        for curve in curves
    ]
    return np.exp(-np.stack(distance) / 2)


def draw(strokes: NDArray[np.float64], labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [n, 28, 28]."""
    offsets = random.integers(0, 2 * SHIFT + 1, size=(len(labels), 2))
    span = np.arange(SIDE)
    rows, columns = offsets[:, :1] + span, offsets[:, 1:] + span
    images = strokes[labels[:, None, None], rows[:, :, None], columns[:, None, :]]
    images = images * random.uniform(0.6, 1.0, size=(len(labels), 1, 1)) + random.normal(0, 0.25, size=images.shape)
    pixels: NDArray[np.uint8] = (255 * images.clip(0, 1)).astype(np.uint8)
    return pixels
