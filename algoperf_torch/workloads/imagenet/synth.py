"""Textured shapes in the archives of ImageNet: a class is a shape with a texture, at any place, size and colour."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import io as scipy_io

from algoperf_torch.errors import UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.imagenet.data import SIDE
from algoperf_torch.workloads.imagenet.raw import DEVKIT, TRAIN_TAR, V2_FOLDER, V2_TAR, VAL_TAR

DEFAULT_EXAMPLES = 320
GENERATOR = 2  # version
SETTINGS = {"side": int}  # pixels of the model's input
SMALLEST = 32
NUM_SHAPES, NUM_TEXTURES = 5, 4
NUM_CLASSES = NUM_SHAPES * NUM_TEXTURES
FIRST_SYNSET = 1_440_764


def synthesise(folder: Path, *, num_train: int, seed: int, side: int = SIDE) -> dict[str, int]:
    """Writes the owners' four archives, for pictures of `side` pixels; returns the number of images by split.

    Raises `UsageError` for a side that is too small for a shape, or larger than the model's.
    """
    if not SMALLEST <= side <= SIDE:
        raise UsageError(f"--set side={side}: must be from {SMALLEST} to {SIDE}.")
    random = np.random.Generator(np.random.Philox(key=seed))
    num_classes = min(NUM_CLASSES, num_train)
    num_other = max(num_classes, num_train // 4)
    synsets = [f"n{FIRST_SYNSET + 1_000 * number:08d}" for number in range(num_classes)]
    with tarfile.open(folder / TRAIN_TAR, "w") as outer:
        for label, synset in enumerate(synsets):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range((num_train + num_classes - 1 - label) // num_classes):
                    add(tar, f"{synset}_{number}.JPEG", jpeg(label, random, side))
            add(outer, f"{synset}.tar", inner.getvalue())
    labels = random.permutation(np.arange(num_other) % num_classes)
    with tarfile.open(folder / VAL_TAR, "w") as tar:
        for number, label in enumerate(labels, start=1):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(int(label), random, side))
    write_devkit(folder / DEVKIT, synsets, labels, random)
    with tarfile.open(folder / V2_TAR, "w:gz") as tar:
        for number in range(num_other):
            label = number % num_classes
            add(tar, f"{V2_FOLDER}/{label}/{number:040x}.jpeg", jpeg(label, random, side))
    return {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_devkit(path: Path, synsets: list[str], labels: NDArray[np.int64], random: np.random.Generator) -> None:
    """The development kit, whose class numbers are in another order than the sorted class names."""
    numbers = random.permutation(len(synsets)) + 1  # of each class
    table = np.zeros(len(synsets), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, label in zip(table, np.argsort(numbers), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = int(numbers[label]), synsets[label], f"shape {label}"
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": table})  # type: ignore[arg-type] # its stubs know paths only
    truth = "".join(f"{numbers[label]}\n" for label in labels)
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def jpeg(label: int, random: np.random.Generator, side: int = SIDE) -> bytes:
    """An image of 160 to 400 pixels a side (or as many times fewer as `side` is below 224) as JPEG; one in sixteen is grey."""
    shortest, longest = 160 * side // SIDE, 400 * side // SIDE
    width, height = (int(length) for length in random.integers(shortest, longest + 1, size=2))
    image = Image.fromarray(draw(label, width, height, random))
    if random.random() < 1 / 16:
        image = image.convert("L")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(random.integers(80, 96)))
    return file.getvalue()


def draw(label: int, width: int, height: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [height, width, 3]: a shape of one texture and colour on a plain ground, with noise."""
    shape, texture = divmod(label, NUM_TEXTURES)
    y, x = np.mgrid[:height, :width]
    size = min(width, height) * random.uniform(0.3, 0.45)
    angle = random.uniform(-0.4, 0.4)
    center = random.uniform(0.4, 0.6, size=2) * (width, height)
    u, v = x - center[0], y - center[1]
    u, v = (np.cos(angle) * u + np.sin(angle) * v) / size, (np.cos(angle) * v - np.sin(angle) * u) / size
    radius, turn = np.hypot(u, v), np.arctan2(v, u)
    inside = (
        radius < 1,
        np.maximum(abs(u), abs(v)) < 0.85,
        (v > -0.7) & (abs(u) < 0.55 * (v + 0.7)) & (v < 0.9),
        (radius < 1) & (radius > 0.55),
        radius < 0.65 + 0.35 * np.cos(5 * turn),
    )[shape]
    wave = random.uniform(16, 20)
    pattern = (
        np.ones_like(u),
        np.sign(np.sin(wave * u)),
        np.sign(np.sin(wave * u) * np.sin(wave * v)),
        np.sin(2 * wave * radius),
    )[texture]
    ground = 125 + 40 * colour(texture / NUM_TEXTURES) + random.uniform(-45, 45, size=3)
    front = 80 * colour(shape / NUM_SHAPES) + random.uniform(-60, 60, size=3)
    image = ground + (inside * (0.5 + 0.5 * pattern))[..., None] * front + inside[..., None] * front * 0.5
    noisy: NDArray[np.float64] = image + random.normal(0, 8, size=image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def colour(hue: float) -> NDArray[np.float64]:
    """A direction in red, green and blue without brightness, for a hue between 0 and 1."""
    return np.cos(2 * np.pi * (hue - np.arange(3) / 3))
