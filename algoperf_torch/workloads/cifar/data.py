"""Reads and writes the python version of CIFAR-10: pickled batches, in a tar archive or unpacked.

A batch is a pickled dictionary with `data`, uint8 [n, 3072] (red, green and blue plane of 32 x 32 pixels), and `labels`, a
list of n class numbers. The batches are unpickled by a reader that builds arrays and plain containers and nothing else.
"""

from __future__ import annotations

import codecs
import gzip
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split, WorkloadSpec
from algoperf_torch.workloads.classification import Labelled

NUM_CLASSES = 10
SIDE = 32  # pixels
PIXELS = 3 * SIDE * SIDE
ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))  # training and validation examples, in this order
TEST = ("test_batch",)


def read_batches(folder: Path) -> dict[str, Labelled]:
    """All batches by name, from the unpacked folder where there is one, else from the archive. Raises `DataError`."""
    names = (*TRAIN, *TEST)
    if (folder / FOLDER).is_dir():
        return {name: _read_file(folder / FOLDER / name) for name in names}
    path = folder / ARCHIVE
    batches = {}
    try:
        with gzip.open(path) as plain:
            with tarfile.open(fileobj=plain) as archive:
                for member in archive:
                    name = member.name.removeprefix(f"{FOLDER}/")
                    if name in names and member.isfile() and (file := archive.extractfile(member)) is not None:
                        batches[name] = parse_batch(file.read(), f"{path}, member {member.name}")
            while plain.read(1 << 20):  # to the end, where the checksum is
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    for name in names:
        if name not in batches:
            raise DataError(f"{path} has no member {FOLDER}/{name}.")
    return batches


def _read_file(path: Path) -> Labelled:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    return parse_batch(content, str(path))


def parse_batch(content: bytes, where: str) -> Labelled:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n] of one pickled batch. Raises `DataError` that names `where`."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        images, labels = np.asarray(named["data"]), np.asarray(named["labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{where} is not a batch of CIFAR-10: {type(error).__name__}: {error}.") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != PIXELS:
        raise DataError(f"{where}: `data` is {images.dtype} {images.shape}, expected uint8 (n, {PIXELS}).")
    if not labels.size:
        labels = labels.astype(np.int64)  # an empty list has no type of its own
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise DataError(f"{where}: `labels` is {labels.dtype} {labels.shape}, expected one integer for each image.")
    wrong = np.flatnonzero((labels < 0) | (labels >= NUM_CLASSES))
    if len(wrong):
        raise DataError(f"{where}: label {labels[wrong[0]]} of example {wrong[0]} is not in 0 to {NUM_CLASSES - 1}.")
    return Labelled(
        torch.from_numpy(images.reshape(-1, 3, SIDE, SIDE).copy()), torch.from_numpy(labels.astype(np.int64))
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Only what arrays are made of can be built; any other name in the pickle is an error and is not imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module.replace("numpy._core.", "numpy.core."), name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file") from None


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into the old pickle protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed in a data file")
    return codecs.encode(text, "latin1")


def _array(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: str) -> NDArray[Any]:
    """How pickle protocol 5 builds an array."""
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


_reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _array,
    ("_codecs", "encode"): _latin1,
}


def write_batch(path: Path, images: NDArray[np.uint8], labels: Sequence[int], title: str) -> None:
    """Writes images uint8 [n, 3072] as the original files are: pickle protocol 2 of Python 2, byte strings throughout."""

    def text(value: bytes) -> bytes:  # SHORT_BINSTRING or BINSTRING
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:  # BININT
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R("
        + integer(1) + integer(len(images)) + integer(PIXELS) + b"\x86"  # version of the format, shape
        + b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R("
        + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
        + b"\x89" + text(images.tobytes()) + b"tb"  # not in Fortran order, the pixels
    )  # fmt: skip
    names = b"".join(text(f"{label}_{index}.png".encode()) for index, label in enumerate(labels))
    path.write_bytes(
        b"\x80\x02}("
        + text(b"batch_label") + text(title.encode())
        + text(b"labels") + b"](" + b"".join(integer(int(label)) for label in labels) + b"e"
        + text(b"data") + array
        + text(b"filenames") + b"](" + names + b"e"
        + b"u."
    )  # fmt: skip


def load_cifar(folder: Path, spec: WorkloadSpec) -> dict[Split, Labelled]:
    """Train, validation and test examples: the last of the training batches are validation. Raises `DataError`."""
    batches = read_batches(folder)
    train = Labelled(*(torch.cat(parts) for parts in zip(*(batches[name] for name in TRAIN), strict=True)))
    test = batches[TEST[0]]
    for what, examples, expected in (
        ("training batches hold", train, spec.num_train + spec.num_validation),
        ("test batch holds", test, spec.num_test),
    ):
        if len(examples.labels) != expected:
            raise DataError(f"{folder}: the {what} {len(examples.labels):,} images, expected {expected:,}.")
    return {
        Split.TRAIN: Labelled(*(stored[: spec.num_train] for stored in train)),
        Split.VALIDATION: Labelled(*(stored[spec.num_train :] for stored in train)),
        Split.TEST: test,
    }
