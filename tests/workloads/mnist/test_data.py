"""IDX files: read, written, and refused when they are not what they should be."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.mnist import SPECS
from algoperf_torch.workloads.mnist.data import TEST, TRAIN, load_mnist, read_idx, write_idx
from algoperf_torch.workloads.registry import build_workload

SPEC = replace(SPECS["mnist"], num_train=6, num_validation=3, num_test=2)
IMAGES, LABELS = TRAIN


def images(count, seed=0):
    return np.random.RandomState(seed).randint(0, 256, size=(count, 28, 28)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Nine training and two test examples."""
    write_idx(tmp_path / IMAGES, images(9))
    write_idx(tmp_path / LABELS, np.arange(9, dtype=np.uint8))
    write_idx(tmp_path / TEST[0], images(2, seed=1))
    write_idx(tmp_path / TEST[1], np.array([9, 0], dtype=np.uint8))
    return tmp_path


def test_bytes_of_the_format(tmp_path):
    path = tmp_path / "x.gz"
    write_idx(path, np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    content = gzip.decompress(path.read_bytes())
    assert content == bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(read_idx(path, 3), [[[0, 1, 2], [3, 4, 5]]])


def test_torchvision_reads_what_we_write(folder):
    from torchvision.datasets.mnist import read_image_file, read_label_file

    for name, reader in ((IMAGES, read_image_file), (LABELS, read_label_file)):
        plain = folder / name.removesuffix(".gz")
        plain.write_bytes(gzip.decompress((folder / name).read_bytes()))
        np.testing.assert_array_equal(reader(str(plain)).numpy(), read_idx(folder / name, 3 if name == IMAGES else 1))


def test_validation_is_the_end_of_the_training_file(folder):
    splits = load_mnist(folder, SPEC)
    whole = torch.from_numpy(images(9))
    assert splits[Split.TRAIN].labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert splits[Split.VALIDATION].labels.tolist() == [6, 7, 8]
    assert splits[Split.TEST].labels.tolist() == [9, 0]
    assert torch.equal(splits[Split.TRAIN].images, whole[:6, None])
    assert torch.equal(splits[Split.VALIDATION].images, whole[6:, None])


def test_pixels_are_scaled_before_they_are_normalised():
    """The reference forgets the division by 255; see docs/fidelity.md."""
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    inputs = build_workload("mnist").inputs(pixels)
    expected = (torch.tensor([0.0, 0.2, 1.0]) - 0.1307) / 0.3081
    torch.testing.assert_close(inputs, expected)
    assert pixels.tolist() == [0, 51, 255]


def rewrite(path, change):
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def set_label(content, index, value):
    return content[: 8 + index] + bytes([value]) + content[9 + index :]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (IMAGES, lambda c: c[:-1], "holds 7,055 bytes of data, its header says 7,056"),
        (IMAGES, lambda c: c + b"x", "holds 7,057 bytes of data, its header says 7,056"),
        (IMAGES, lambda c: b"\0\0\x0d" + c[3:], "not an IDX file of unsigned bytes"),
        (IMAGES, lambda c: b"PK" + c[2:], "not an IDX file"),
        (IMAGES, lambda c: c[:7], "not an IDX file"),
        (IMAGES, lambda c: b"", "not an IDX file"),
        (IMAGES, lambda c: c[:4] + struct.pack(">3I", 9, 14, 56) + c[16:], r"images of \(14, 56\) pixels"),
        (IMAGES, lambda c: c[:4] + struct.pack(">3I", 8, 28, 28) + c[16 : 16 + 8 * 784], "holds 9 labels for 8 images"),
        (LABELS, lambda c: c[:4] + struct.pack(">I", 8) + c[8:16], "holds 8 labels for 9 images"),
        (LABELS, lambda c: set_label(c, 4, 10), "label 10 of example 4 is not below 10"),
        (LABELS, lambda c: set_label(c, 0, 255), "label 255 of example 0"),
        (LABELS, lambda c: b"\0\0\x08\x03" + c[4:], "not an IDX file of unsigned bytes with 1 dimensions"),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_bad_content(folder, name, change, message):
    rewrite(folder / name, change)
    with pytest.raises(DataError, match=message) as caught:
        load_mnist(folder, SPEC)
    assert str(folder / name) in str(caught.value) or str(folder / LABELS) in str(caught.value)


@pytest.mark.parametrize("name", [*TRAIN, *TEST])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "no gzip", "a folder"])
def test_bad_file(folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        changed = {"empty": b"", "truncated": content[:-12], "flipped": flipped, "no gzip": b"<html>"}
        path.write_bytes(changed[damage])
    with pytest.raises(DataError) as caught:
        load_mnist(folder, SPEC)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_train": 7}, f"{IMAGES} holds 9 images, expected 10"),
        ({"num_validation": 1}, f"{IMAGES} holds 9 images, expected 7"),
        ({"num_test": 10_000}, f"{TEST[0]} holds 2 images, expected 10,000"),
    ],
    ids=str,
)
def test_wrong_number_of_examples(folder, sizes, message):
    with pytest.raises(DataError, match=message):
        load_mnist(folder, replace(SPEC, **sizes))


def test_files_that_are_not_the_published_ones_are_refused(folder, tmp_path_factory):
    """Without a manifest, names, sizes and checksums must be the owner's."""
    root = tmp_path_factory.mktemp("root")
    folder.rename(root / "mnist")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz has .* bytes, expected 9,912,422"):
        build_workload("mnist", root).open()
