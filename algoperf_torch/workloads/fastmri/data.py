"""From k-space to the pair that the model sees: mask of columns, inverse Fourier transform, normalisation.

A slice is measured as k-space [height, width]; the mask keeps or drops whole columns. The inverse transform along the
height does not depend on the mask, so it is done once, when data are prepared (`columns`), and only the kept columns are
read and transformed along the width for training (`reconstruct`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

CROP = 320  # pixels of the square image
ACCELERATION = 4
CENTER_FRACTION = 0.08
LIMIT = 6.0  # normalised pixels are clipped to plus and minus this

Complex = NDArray[np.complex64]
Float = NDArray[np.float32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


class Slice(NamedTuple):
    """One example: float32 [320, 320] twice, and the numbers that undo the normalisation."""

    inputs: Float
    targets: Float
    mean: float
    std: float


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox 4x32-10 (Salmon et al., 2011): counters [n, 4] of 32-bit words to random words [n, 4]."""
    c0, c1, c2, c3 = counter.T
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _INCREMENTS[0]) % 2**32, (k1 + _INCREMENTS[1]) % 2**32
    return np.stack([c0, c1, c2, c3], axis=1)


def stateless_uniform(seed: tuple[int, int], count: int) -> Float:
    """float32 [count] in [0, 1): a function of the seed pair, the one that the reference draws its masks from."""
    words = [seed[0] % 2**32, seed[0] % 2**64 >> 32, seed[1] % 2**32, seed[1] % 2**64 >> 32]
    (m0, m1, m2, m3) = philox(np.array([words], dtype=np.uint64), (0x3EC8F720, 0x02461E29))[0]
    counter = np.zeros((-(-count // 4), 4), dtype=np.uint64)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 2:] = m2, m3
    bits = philox(counter, (int(m0), int(m1))).ravel()[:count].astype(np.uint32)
    one_to_two = ((bits & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)).view(np.float32)
    return np.asarray(one_to_two - 1, dtype=np.float32)


def kept_columns(width: int, seed: tuple[int, int]) -> NDArray[np.bool_]:
    """Boolean [width]: the central columns, and each other one with the probability that keeps a quarter on average."""
    center = int(np.float32(width) * np.float32(CENTER_FRACTION))
    first = (width - center + 1) // 2
    probability = (np.float32(width) / np.float32(ACCELERATION) - np.float32(center)) / np.float32(width - center)
    kept = stateless_uniform(seed, width) < probability
    kept[first : first + center] = True
    return kept


def columns(kspace: Complex, crop: int = CROP) -> Complex:
    """Centred orthonormal inverse transform along the height of [..., height, width], its central `crop` rows.

    Gives complex64 [..., width, crop]: one row for every measured column.
    """
    height = kspace.shape[-2]
    image = fft.fftshift(fft.ifft(fft.ifftshift(kspace.astype(np.complex128), axes=-2), axis=-2, norm="ortho"), axes=-2)
    top = (height - crop) // 2
    return np.ascontiguousarray(image[..., top : top + crop, :].swapaxes(-1, -2)).astype(np.complex64)


def reconstruct(measured: Complex, kept: NDArray[np.bool_]) -> Float:
    """Magnitude image float32 [crop, crop] of the kept columns; `measured` [width, crop] is what `columns` gives."""
    width, crop = measured.shape
    index = np.flatnonzero(kept)
    spectrum = np.zeros((crop, width), dtype=np.complex64)
    spectrum[:, (index - width // 2) % width] = measured[index].T  # what ifftshift does to the columns
    image = fft.ifft(spectrum, axis=1, norm="ortho", overwrite_x=True)
    first = (width - crop) // 2 - width // 2  # fftshift, then crop
    pixels = np.empty((crop, crop), dtype=np.float32)
    np.abs(image[:, first:], out=pixels[:, :-first])
    np.abs(image[:, : first + crop], out=pixels[:, -first:])
    return pixels


def normalised(image: Float, target: Float, inputs: Float | None = None, targets: Float | None = None) -> Slice:
    """Input and target, both by the input's mean and population standard deviation, clipped.

    They are written to `inputs` and `targets`, float32 of the same shape, where these are given.
    """
    outputs = [np.empty(image.shape, dtype=np.float32) if out is None else out for out in (inputs, targets)]
    mean = image.mean()
    for x, out in zip((image, target), outputs, strict=True):
        np.subtract(x, mean, out=out)
    deviations = outputs[0].ravel()
    std = np.sqrt(np.dot(deviations, deviations) / np.float32(image.size))
    for out in outputs:
        np.divide(out, std, out=out)
        np.clip(out, -LIMIT, LIMIT, out=out)
    return Slice(outputs[0], outputs[1], float(mean), float(std))
