"""Packs ImageNet: training images as their owner's JPEG bytes, validation and test images as the pixels of evaluation."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, pack
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.imagenet.data import SIDE, decode, v2_pixels, validation_pixels
from algoperf_torch.workloads.imagenet.raw import (
    NUM_CLASSES,
    V2_FOLDER,
    V2_TAR,
    Entry,
    training_images,
    v2_images,
    validation_images,
)

DATASET = "imagenet"
PREPARATION = 1
CLASSES_PER_PART = 20  # every array of a part is an open file while training
VALIDATION_PER_PART = 5_000


def prepare(
    raw: Path, out: Path, *, workers: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Packs the images below `raw` into the folder `out`. Raises `DataError` that names the image."""
    classes, by_class = training_images(raw)
    if len(classes) > NUM_CLASSES:
        raise DataError(f"{raw} holds {len(classes)} classes, the model knows {NUM_CLASSES}.")
    validation = validation_images(raw, classes)
    described = read_manifest(raw)
    made = described.generation if described is not None else None
    side = int(made.settings.get("side", SIDE)) if made is not None else SIDE  # generated images may be smaller
    train = [
        Job(
            Split.TRAIN,
            f"classes_{start:03d}",
            [entry for images in by_class[start : start + CLASSES_PER_PART] for entry in images],
        )
        for start in range(0, len(by_class), CLASSES_PER_PART)
    ]
    held_out = [
        Job(
            Split.VALIDATION,
            f"part_{start // VALIDATION_PER_PART:02d}",
            (validation[start : start + VALIDATION_PER_PART], side),
        )
        for start in range(0, len(validation), VALIDATION_PER_PART)
    ]

    def fill(packing: Packing) -> Mapping[str, Any]:
        packing.run(train, write_training_part)
        packing.run(held_out, write_validation_part)
        packing.run([Job(Split.TEST, "v2", (raw, len(classes), packing.folder, side))], write_test_part)
        return {"classes": len(classes), "side": side}

    return pack(
        out,
        fill,
        dataset=DATASET,
        preparation=PREPARATION,
        settings={
            "images": _fingerprint([*(entry for images in by_class for entry in images), *validation], raw),
            "side": side,
        },
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def _fingerprint(entries: Sequence[Entry], raw: Path) -> str:
    """Changes with the list of images, and with the size or date of an archive that holds some."""
    test = raw / V2_FOLDER if (raw / V2_FOLDER).is_dir() else raw / V2_TAR
    if not test.exists():
        raise DataError(f"{raw} holds neither {V2_TAR} nor a folder {V2_FOLDER}.")
    files = {
        path: path.stat() for path in sorted({entry.path for entry in entries if entry.offset is not None} | {test})
    }
    stamp = hashlib.sha256(json.dumps([[str(p), s.st_size, s.st_mtime_ns] for p, s in files.items()]).encode())
    for entry in entries:
        stamp.update(f"{entry.name} {entry.label} {entry.offset} {entry.size}\n".encode())
    return stamp.hexdigest()


def write_training_part(writer: PartWriter, entries: Sequence[Entry]) -> None:
    for entry in entries:
        data = np.frombuffer(readable(entry.name, entry.read()), dtype=np.uint8)
        writer.append_ragged("images", data, np.array([len(data)]))
        writer.append("labels", np.array([entry.label], dtype=np.int32))


def write_validation_part(writer: PartWriter, source: tuple[Sequence[Entry], int]) -> None:
    entries, side = source
    for entry in entries:
        writer.append("pixels", validation_pixels(opened(entry.name, entry.read()), side)[None])
        writer.append("labels", np.array([entry.label], dtype=np.int32))


def write_test_part(writer: PartWriter, source: tuple[Path, int, Path, int]) -> None:
    raw, num_classes, spool, side = source
    for name, label, data in v2_images(raw, num_classes, spool):
        writer.append("pixels", v2_pixels(opened(name, data), side)[None])
        writer.append("labels", np.array([label], dtype=np.int32))


def opened(name: str, data: bytes) -> Image.Image:
    """The decoded image. Raises `DataError` that names it."""
    try:
        return decode(data)
    except DataError as error:
        raise DataError(f"{name}: {error} Get it again.") from error


def readable(name: str, data: bytes) -> bytes:
    """The bytes of a JPEG in grey or RGB as they are; anything else (ImageNet has a few) as PNG of its RGB pixels."""
    image = opened(name, data)
    with Image.open(io.BytesIO(data)) as original:
        if original.format == "JPEG" and original.mode in ("RGB", "L"):
            return data
    lossless = io.BytesIO()
    image.save(lossless, "PNG")
    return lossless.getvalue()
