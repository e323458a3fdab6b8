"""Phantoms in the format of fastMRI: ellipses of different brightness, measured with a smooth phase and noise."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from algoperf_torch.errors import UsageError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.fastmri.data import CROP
from algoperf_torch.workloads.fastmri.prepare import TRAIN_FOLDERS, VAL_FOLDERS

DEFAULT_EXAMPLES = 32
SETTINGS = {"crop": int}  # pixels of the square image
SLICES = 4  # of a volume; the owner's have 30 to 40
WIDTHS = (368, 372)  # as many times fewer as the crop is below 320
BRIGHTNESS = 1e-4  # the owner's images have values of about this size
NOISE = 0.02  # of the measured image, relative to the brightness


def synthesise(folder: Path, *, num_train: int, seed: int, crop: int = CROP) -> dict[str, int]:
    """Writes volumes for training and validation, for images of `crop` pixels; returns the number of slices by split.

    Raises `UsageError` for images that the model cannot halve four times.
    """
    if not 2**4 <= crop <= CROP:
        raise UsageError(f"--set crop={crop}: must be from {2**4} to {CROP}.")
    random = np.random.Generator(np.random.Philox(key=seed))
    num_other = max(1, num_train // 4)
    counts: dict[str, int] = {Split.TRAIN: num_train, Split.VALIDATION: num_other, Split.TEST: num_other}
    for name, group in ((TRAIN_FOLDERS[0], (num_train,)), (VAL_FOLDERS[0], (num_other, num_other))):
        (folder / name).mkdir()
        number = 1_000_000
        for total in group:
            # validation and test are the two halves of the list of files: both need equally many
            for start in range(0, total, SLICES):
                number += 1
                path = folder / name / f"file{number}.h5"
                width = WIDTHS[number % len(WIDTHS)] * crop // CROP
                write_volume(path, min(SLICES, total - start), width, crop, random)
    return counts


def write_volume(path: Path, slices: int, width: int, crop: int, random: np.random.Generator) -> None:
    """One HDF5 file with k-space, both reconstructions, and the attributes that the owner's files have."""
    shape = random.uniform(-1, 1, size=(12, 6))
    images = np.stack(
        [phantom(shape + 0.03 * depth * random.normal(size=shape.shape), width, crop) for depth in range(slices)]
    )
    noise = random.normal(size=(2, *images.shape)) * NOISE * BRIGHTNESS
    measured = images * BRIGHTNESS + noise[0] + 1j * noise[1]
    kspace = fft.fftshift(fft.fft2(fft.ifftshift(measured, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    top, left = crop // 2, (width - crop) // 2
    target = np.abs(measured[:, top : top + crop, left : left + crop]).astype(np.float32)
    header = f"<ismrmrdHeader><encoding><encodedSpace><matrixSize><x>{2 * crop}</x><y>{width}</y><z>1</z>"
    header += "</matrixSize></encodedSpace></encoding></ismrmrdHeader>"
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace.astype(np.complex64)
        file["reconstruction_esc"] = target
        file["reconstruction_rss"] = target
        file["ismrmrd_header"] = header.encode()
        file.attrs.update(
            acquisition="CORPD_FBK", max=float(target.max()), norm=float(np.linalg.norm(target)), patient_id=path.stem
        )


def phantom(ellipses: NDArray[np.float64], width: int, crop: int = CROP) -> NDArray[np.complex128]:
    """complex128 [2 crop, width]: twelve ellipses given by six numbers each, under a phase that varies slowly."""
    y, x = np.mgrid[-2 : 2 : 2 * crop * 1j, -width / crop : width / crop : width * 1j]
    image = (x**2 + y**2 < 0.9).astype(np.float64)
    for center_x, center_y, size, ratio, angle, value in ellipses:
        u, v = x - 0.6 * center_x, y - 0.6 * center_y
        turned = np.cos(3 * angle) * u + np.sin(3 * angle) * v, np.cos(3 * angle) * v - np.sin(3 * angle) * u
        radius = 0.12 + 0.1 * size
        distance = turned[0] ** 2 / radius**2 + turned[1] ** 2 / (radius * (1 + 0.5 * ratio)) ** 2
        image += 0.5 * value * (1 / (1 + np.exp(np.minimum(40 * (distance - 1), 50))))
    phase = 0.5 * x - 0.3 * y + 0.2 * x * y
    return np.asarray(np.maximum(image, 0) * np.exp(1j * phase), dtype=np.complex128)
