"""From the bytes of an image file to the pixels that the model sees: crops, RandAugment, mixup.

All randomness comes as arguments: uniform numbers in [0, 1) that the caller keys by the image's place in its batch.
RandAugment: Cubuk et al., 2019, arXiv:1909.13719. Mixup: Zhang et al., 2017, arXiv:1710.09412.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as transforms

from algoperf_torch.errors import DataError

SIDE = 224  # pixels of the model's input; lengths below are for this size, and go with it where it is another
RESIZED = 256  # shorter side before the central crop at evaluation
MEAN = (0.485, 0.456, 0.406)  # of the training pixels, on the scale 0 to 1
STD = (0.229, 0.224, 0.225)

CROP_ATTEMPTS = 10
CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_DRAWS = 4 * CROP_ATTEMPTS  # area, aspect, top and left of every attempt
FLIP_DRAWS = 1

NUM_OPERATIONS = 2
OPERATION_DRAWS = 4  # which, sign, x and y
GREY = (128, 128, 128)
MIXUP_ALPHA = 0.2

Uint8 = NDArray[np.uint8]
Float = NDArray[np.float32]
Draws = NDArray[np.float64]


def decode(data: bytes | memoryview) -> Image.Image:
    """An RGB image from the bytes of a file. Raises `DataError` for bytes that are truncated or no image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"An image cannot be decoded ({error}).") from error


def planes(image: Image.Image) -> Uint8:
    """uint8 [3, height, width]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


# ------------------------------------------------------------------------------------------------------------ training


def num_draws(*, augmented: bool) -> int:
    """Uniform numbers that `training_pixels` takes for one image."""
    return CROP_DRAWS + FLIP_DRAWS + (NUM_OPERATIONS * OPERATION_DRAWS if augmented else 0)


def training_pixels(data: bytes | memoryview, draws: Draws, *, augmented: bool, side: int = SIDE) -> Uint8:
    """uint8 [3, side, side]: random resized crop, random flip and, if `augmented`, RandAugment."""
    crop, flip, operations = np.split(draws, [CROP_DRAWS, CROP_DRAWS + FLIP_DRAWS])
    image = decode(data)
    left, top, width, height = random_crop(image.width, image.height, crop)
    image = image.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
    if flip[0] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmented:
        image = rand_augment(image, operations)
    return planes(image)


def random_crop(width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of random area and aspect; a central one after ten that do not fit."""
    low, high = (math.log(aspect) for aspect in CROP_ASPECT)
    for u_area, u_aspect, u_top, u_left in draws.reshape(CROP_ATTEMPTS, 4).tolist():
        area = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * u_area)
        aspect = math.exp(low + (high - low) * u_aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u_left * (width - w + 1)), int(u_top * (height - h + 1)), w, h
    aspect = width / height
    if aspect < CROP_ASPECT[0]:
        w, h = width, round(width / CROP_ASPECT[0])
    elif aspect > CROP_ASPECT[1]:
        w, h = round(height * CROP_ASPECT[1]), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def _affine(
    image: Image.Image, *, shear: tuple[float, float] = (0, 0), translate: tuple[int, int] = (0, 0)
) -> Image.Image:
    center = [0, 0] if any(shear) else None
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    moved: Image.Image = transforms.affine(
        image, 0.0, list(translate), 1.0, degrees, transforms.InterpolationMode.NEAREST, list(GREY), center
    )
    return moved


def _scaled(length: int, size: int) -> int:
    """A length that is given for 224 pixels, for `size` of them."""
    return length * size // SIDE


def cutout(image: Image.Image, x: float, y: float, half: int = 40) -> Image.Image:
    """A grey rectangle, of 2 half + 1 pixels, around (x, y); at the left and top edge it is moved inside, not cut."""
    left, top = int(max(0, x - half)), int(max(0, y - half))
    right, bottom = int(min(image.width, left + 2 * half)), int(min(image.height, top + 2 * half))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, right, bottom), GREY)
    return image


def solarize_add(image: Image.Image) -> Image.Image:
    """110 added to all values below 128, at most 255."""
    table = [min(255, value + 110) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


# Each takes the image, a sign, and a point inside it that only Cutout looks at.
OPERATIONS: dict[str, Callable[[Image.Image, int, float, float], Image.Image]] = {
    "ShearX": lambda image, sign, *_: _affine(image, shear=(sign * 0.3, 0)),
    "ShearY": lambda image, sign, *_: _affine(image, shear=(0, sign * 0.3)),
    "TranslateX": lambda image, sign, *_: _affine(image, translate=(sign * _scaled(100, image.width), 0)),
    "TranslateY": lambda image, sign, *_: _affine(image, translate=(0, sign * _scaled(100, image.height))),
    "Rotate": lambda image, sign, *_: transforms.rotate(image, sign * 30.0, fill=list(GREY)),
    "Brightness": lambda image, *_: transforms.adjust_brightness(image, 1.9),
    "Color": lambda image, *_: transforms.adjust_saturation(image, 1.9),
    "Contrast": lambda image, *_: transforms.adjust_contrast(image, 1.9),
    "Sharpness": lambda image, *_: transforms.adjust_sharpness(image, 1.9),
    "Posterize": lambda image, *_: transforms.posterize(image, 4),
    "Solarize": lambda image, *_: transforms.solarize(image, 256),
    "SolarizeAdd": lambda image, *_: solarize_add(image),
    "AutoContrast": lambda image, *_: transforms.autocontrast(image),
    "Equalize": lambda image, *_: transforms.equalize(image),
    "Invert": lambda image, *_: transforms.invert(image),
    "Cutout": lambda image, _, x, y: cutout(image, x, y, half=_scaled(40, image.width)),
}


def rand_augment(image: Image.Image, draws: Draws) -> Image.Image:
    """Two operations, drawn with replacement, at the workload's one magnitude."""
    names = list(OPERATIONS)
    for u_name, u_sign, u_x, u_y in draws.reshape(NUM_OPERATIONS, OPERATION_DRAWS).tolist():
        x, y = (size - u * (size - 1) for size, u in ((image.width, u_x), (image.height, u_y)))  # in (1, size]
        image = OPERATIONS[names[int(u_name * len(names))]](image, 1 if u_sign < 0.5 else -1, x, y)
    return image


# ---------------------------------------------------------------------------------------------------------- evaluation


def validation_pixels(image: Image.Image, side: int = SIDE) -> Uint8:
    """uint8 [3, side, side]: shorter side to 8/7 of it (224: 256), central crop."""
    short, resized = min(image.size), _scaled(RESIZED, side)
    width, height = (resized if length == short else int(resized * length / short) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return planes(image.crop((left, top, left + side, top + side)))


def v2_crop(width: int, height: int) -> tuple[int, int, int]:
    """Top, left and side of the square that images of ImageNet-v2 are cut to."""
    side = int(SIDE / RESIZED * min(width, height))
    return (height - side + 1) // 2, (width - side + 1) // 2, side


def v2_pixels(image: Image.Image, side: int = SIDE) -> Float:
    """Test pixels, float32 [3, side, side] from 0 to 255, neither clipped nor rounded: central crop, bicubic resize."""
    top, left, length = v2_crop(*image.size)
    pixels = planes(image)[:, top : top + length, left : left + length].astype(np.float32)
    taps, weights = bicubic_taps(length, side)
    rows = sum(weight[:, None] * pixels[:, tap, :] for tap, weight in zip(taps, weights, strict=True))
    return np.asarray(sum(weight * rows[..., tap] for tap, weight in zip(taps, weights, strict=True)))


@lru_cache(maxsize=256)
def bicubic_taps(source: int, target: int) -> tuple[NDArray[np.int64], Float]:
    """The four source pixels of every target pixel and their weights, [4, target]: cubic kernel (Keys, a = -0.5).

    Without anti-aliasing. The position between two pixels is rounded to 1/1024; taps outside the image are dropped and
    the others rescaled.
    """
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    offsets = np.arange(-1, 3)[:, None]
    taps = np.floor(position).astype(np.int64) + offsets
    fraction = np.round((position - np.floor(position)) * 1024) / 1024
    distance = np.abs(fraction - offsets)
    near = ((1.5 * distance - 2.5) * distance) * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance <= 1, near, far) * ((taps >= 0) & (taps < source))
    return taps.clip(0, source - 1), (weights / weights.sum(axis=0)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- batches, on the device


def normalise(pixels: Tensor) -> Tensor:
    """float32 inputs of the model from pixels [batch, 3, side, side] on the scale 0 to 255."""
    mean, std = (255 * pixels.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (MEAN, STD))
    if pixels.device.type != "cpu":
        return pixels.to(torch.float32, copy=True).sub_(mean).div_(std)
    # Fresh pages cost more than the arithmetic: NumPy asks the system for large ones, torch does not.
    normalised = torch.from_numpy(np.empty(pixels.shape, dtype=np.float32))
    for image, out in zip(pixels, normalised, strict=True):  # one at a time stays in the cache
        out.copy_(image).sub_(mean).div_(std)
    return normalised


def mixup(inputs: Tensor, targets: Tensor, weight: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Every example mixed with the one before it: inputs [batch, ...] and distributions [batch, num_classes].

    Takes one example more at the front, [1 + batch, ...], which only gives the first its partner. `weight`, a scalar, is
    that of the example itself.
    """
    targets = functional.one_hot(targets, num_classes).to(inputs.dtype)
    mixed_inputs, mixed_targets = (weight * x[1:] + (1 - weight) * x[:-1] for x in (inputs, targets))
    return mixed_inputs, mixed_targets
