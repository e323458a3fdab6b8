"""Packs the fastMRI knee volumes: training slices as columns of half-transformed k-space, the other splits ready to use.

Raw layout, as the owner's archives unpack (folders may also carry the archives' names without `knee_`)::

    knee_singlecoil_train/*.h5   kspace complex64 [slices, 640, width], reconstruction_esc float32 [slices, 320, 320],
    knee_singlecoil_val/*.h5     attribute `max`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from algoperf_torch.data.manifest import Manifest, read_manifest
from algoperf_torch.data.packed import Job, Packing, PartWriter, Progress, pack, source_files
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.fastmri.data import (
    CROP,
    Complex,
    Float,
    columns,
    kept_columns,
    normalised,
    reconstruct,
)

DATASET = "fastmri"
PREPARATION = 1
TRAIN_FOLDERS = ("knee_singlecoil_train", "singlecoil_train")
VAL_FOLDERS = ("knee_singlecoil_val", "singlecoil_val")
VOLUMES_PER_PART = 32  # every array of a part is an open file while training
EVALUATION_SEED = (0, 0)  # of the masks of validation and test


def prepare(
    raw: Path, out: Path, *, workers: int = 1, overwrite: bool = False, progress: Progress | None = None
) -> Manifest:
    """Packs the volumes below `raw` into the folder `out`. Raises `DataError` that names the file."""
    train, val = (volumes(raw, names) for names in (TRAIN_FOLDERS, VAL_FOLDERS))
    half = (len(val) + 1) // 2  # of the owner's 199 volumes, the first 100 are the validation split
    files = {Split.TRAIN: train, Split.VALIDATION: val[:half], Split.TEST: val[half:]}
    if not files[Split.TEST]:
        raise DataError(f"{val[0].parent} holds one volume; validation and test need at least one each.")
    described = read_manifest(raw)
    made = described.generation if described is not None else None
    crop = int(made.settings.get("crop", CROP)) if made is not None else CROP  # generated slices may be smaller
    jobs = [
        Job(split, f"part_{start // VOLUMES_PER_PART:03d}", (split, paths[start : start + VOLUMES_PER_PART], crop))
        for split, paths in files.items()
        for start in range(0, len(paths), VOLUMES_PER_PART)
    ]

    def fill(packing: Packing) -> Mapping[str, Any]:
        packing.run(jobs, write_part)
        return {"crop": crop}

    return pack(
        out,
        fill,
        dataset=DATASET,
        preparation=PREPARATION,
        settings={"files": source_files([*train, *val], raw), "crop": crop},
        described=described,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def volumes(raw: Path, names: Sequence[str]) -> list[Path]:
    """The volumes of the first folder of these names that exists, sorted. Raises `DataError`."""
    for name in names:
        if (raw / name).is_dir():
            found = sorted((raw / name).glob("*.h5"))
            if not found:
                raise DataError(f"{raw / name} holds no volumes (*.h5).")
            return found
    raise DataError(f"{raw} holds no folder {' or '.join(names)}. Unpack the owner's archives there.")


def write_part(writer: PartWriter, source: tuple[Split, Sequence[Path], int]) -> None:
    split, paths, crop = source
    for path in paths:
        for kspace, target, volume_max in read_volume(path, crop):
            measured = columns(kspace, crop)
            writer.append("volume_max", np.array([volume_max], dtype=np.float32))
            if split is Split.TRAIN:
                writer.append_ragged("columns", measured, np.array([len(measured)]))
                writer.append("targets", target[None])
                continue
            image = reconstruct(measured, kept_columns(len(measured), EVALUATION_SEED))
            example = normalised(image, target)
            writer.append("inputs", example.inputs[None])
            writer.append("targets", example.targets[None])
            writer.append("mean", np.array([example.mean], dtype=np.float32))
            writer.append("std", np.array([example.std], dtype=np.float32))


def read_volume(path: Path, crop: int = CROP) -> Iterator[tuple[Complex, Float, float]]:
    """k-space [2 crop, width], target image [crop, crop] and the volume's maximum, for every slice. Raises `DataError`."""
    try:
        with h5py.File(path, "r") as file:
            kspace, target = (_dataset(file, name, path) for name in ("kspace", "reconstruction_esc"))
            slices = kspace.shape[0]
            _check_shape(path, "kspace", kspace, (slices, 2 * crop, None), "complex64")
            _check_shape(path, "reconstruction_esc", target, (slices, crop, crop), "float32")
            volume_max = float(file.attrs.get("max", 0.0))
            if slices == 0 or not np.isfinite(volume_max) or kspace.shape[2] < crop:
                raise DataError(
                    f"{path}: {slices} slices of width {kspace.shape[2]}, maximum {volume_max}; expected at least one "
                    f"slice, width {crop} or more, a finite maximum. Get the file again."
                )
            for number in range(slices):
                pair = kspace[number], target[number]
                if not all(np.isfinite(array).all() for array in pair) or not pair[0].any():
                    raise DataError(f"{path}, slice {number}: empty or not finite. Get the file again.")
                yield *pair, volume_max
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"Cannot read {path}: {error}. It is truncated or no HDF5 volume; get it again.") from error


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    if not isinstance(file.get(name), h5py.Dataset):
        raise DataError(f"{path} has no dataset {name!r}. It is no single-coil training or validation volume.")
    return file[name]


def _check_shape(path: Path, name: str, data: h5py.Dataset, shape: tuple[int | None, ...], dtype: str) -> None:
    fits = len(data.shape) == len(shape) and all(
        want in (None, is_) for want, is_ in zip(shape, data.shape, strict=True)
    )
    if not fits or data.dtype != np.dtype(dtype):
        wanted = ", ".join("width" if size is None else str(size) for size in shape)
        raise DataError(f"{path}: {name} is {data.dtype} {tuple(data.shape)}, expected {dtype} ({wanted}).")
