"""Reads and writes the four gzipped IDX files that MNIST is distributed in.

IDX: two zero bytes, the element type (8: unsigned byte), the number of dimensions, each dimension as a big-endian 32-bit
number, then the elements in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split, WorkloadSpec
from algoperf_torch.workloads.classification import Labelled

NUM_CLASSES = 10
SIDE = 28  # pixels
TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")  # training and validation examples, in this order
TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
UNSIGNED_BYTE = 8


def read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes. Raises `DataError`."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    header = 4 + 4 * num_dimensions
    if len(content) < header or content[:4] != bytes((0, 0, UNSIGNED_BYTE, num_dimensions)):
        raise DataError(f"{path} is not an IDX file of unsigned bytes with {num_dimensions} dimensions.")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(f"{path} holds {len(content) - header:,} bytes of data, its header says {math.prod(shape):,}.")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """Writes a gzipped IDX file; the same bytes for the same array."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def read_examples(folder: Path, names: tuple[str, str]) -> Labelled:
    """Images uint8 [n, 1, 28, 28] and labels int64 [n] of a pair of files. Raises `DataError`."""
    images, labels = read_idx(folder / names[0], 3), read_idx(folder / names[1], 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{folder / names[0]} holds images of {images.shape[1:]} pixels, expected {(SIDE, SIDE)}.")
    if len(images) != len(labels):
        raise DataError(f"{folder / names[1]} holds {len(labels):,} labels for {len(images):,} images.")
    if len(labels) and labels.max() >= NUM_CLASSES:
        record = int(labels.argmax())
        raise DataError(f"{folder / names[1]}: label {labels[record]} of example {record} is not below {NUM_CLASSES}.")
    return Labelled(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)))


def load_mnist(folder: Path, spec: WorkloadSpec) -> dict[Split, Labelled]:
    """Train, validation and test examples: the last of the training file are the validation split. Raises `DataError`."""
    splits = {}
    train, test = read_examples(folder, TRAIN), read_examples(folder, TEST)
    expected = {TRAIN[0]: spec.num_train + spec.num_validation, TEST[0]: spec.num_test}
    for name, examples in ((TRAIN[0], train), (TEST[0], test)):
        if len(examples.labels) != expected[name]:
            raise DataError(f"{folder / name} holds {len(examples.labels):,} images, expected {expected[name]:,}.")
    splits[Split.TRAIN] = Labelled(*(stored[: spec.num_train] for stored in train))
    splits[Split.VALIDATION] = Labelled(*(stored[spec.num_train :] for stored in train))
    splits[Split.TEST] = test
    return splits
