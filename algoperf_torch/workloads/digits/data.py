"""Reads the digits from the file inside scikit-learn and cuts them into the three splits."""

from __future__ import annotations

import hashlib
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split, WorkloadSpec
from algoperf_torch.workloads.classification import Labelled

NUM_DIGITS = 1_797
SIDE = 8  # pixels
WHITE = 16  # largest pixel value
TABLE_SHA256 = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"  # of the uint8 [1797, 65] table
SPLIT_SEED = 20_306  # of the permutation that is cut into train, validation and test
MEAN, STD = 0.3053, 0.3760  # of all pixels / WHITE


def digits_file() -> Path:
    """The file inside the installed scikit-learn, which is not imported. Raises `DataError`."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("The digits come with scikit-learn, which is not installed. Run: pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def read_table(path: Path) -> NDArray[np.uint8]:
    """uint8 [1797, 65]: 64 pixels in row-major order, then the label. Raises `DataError`."""
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"Cannot read the digits from {path}: {error}. Reinstall scikit-learn.") from error
    if hashlib.sha256(table.tobytes()).hexdigest() != TABLE_SHA256:
        raise DataError(f"{path} does not hold the {NUM_DIGITS} known digits (checksum). Reinstall scikit-learn.")
    return table


def load_digits(spec: WorkloadSpec, path: Path | None = None) -> dict[Split, Labelled]:
    """Train, validation and test split, in this order out of one fixed permutation. Raises `DataError`."""
    table = read_table(path or digits_file())
    order = np.random.Generator(np.random.Philox(key=SPLIT_SEED)).permutation(NUM_DIGITS)
    images = (table[order, :-1].astype(np.float32) / WHITE - MEAN) / STD
    images_nchw = torch.from_numpy(images.reshape(-1, 1, SIDE, SIDE))
    labels = torch.from_numpy(table[order, -1].astype(np.int64))
    sizes = [spec.num_train, spec.num_validation, spec.num_test]
    parts = zip(images_nchw.split(sizes), labels.split(sizes), strict=True)
    return dict(zip((Split.TRAIN, Split.VALIDATION, Split.TEST), (Labelled(*part) for part in parts), strict=True))
