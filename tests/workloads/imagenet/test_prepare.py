"""From archives or folders to packed images, in the same order; files that are broken."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from algoperf_torch.data.packed import Packed
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.imagenet import raw as raw_files
from algoperf_torch.workloads.imagenet.data import decode, v2_pixels, validation_pixels
from algoperf_torch.workloads.imagenet.prepare import PREPARATION, prepare, readable
from algoperf_torch.workloads.imagenet.raw import training_images, v2_images, validation_images


@pytest.fixture(scope="module")
def raw(prepared):
    return prepared("imagenet").parent / "raw" / "imagenet"


@pytest.fixture(scope="module")
def packed(prepared):
    return Packed.open(prepared("imagenet") / "imagenet", dataset="imagenet", preparation=PREPARATION)


@pytest.fixture(scope="module")
def unpacked(raw, tmp_path_factory):
    """The same images as folders, as the usual scripts unpack them."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.copy(raw / "manifest.json", folder)
    classes, by_class = training_images(raw)
    for name, entries in zip(classes, by_class, strict=True):
        (folder / "train" / name).mkdir(parents=True)
        (folder / "val" / name).mkdir(parents=True)
        for entry in entries:
            (folder / "train" / name / entry.name.split(":")[-1]).write_bytes(entry.read())
    for entry in validation_images(raw, classes):
        (folder / "val" / classes[entry.label] / entry.name.split(":")[-1]).write_bytes(entry.read())
    with tarfile.open(raw / raw_files.V2_TAR) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_archives(raw):
    classes, by_class = training_images(raw)
    assert classes == sorted(classes)
    assert [entry.label for entries in by_class for entry in entries] == sorted(
        entry.label for entries in by_class for entry in entries
    )
    assert all(decode(entry.read()).width >= 160 for entries in by_class for entry in entries)


def test_validation_classes_come_from_the_development_kit(raw):
    """Its class numbers are not in the order of the names: the shape in the picture tells whether they were mixed up."""
    classes, _ = training_images(raw)
    counts = np.bincount([entry.label for entry in validation_images(raw, classes)], minlength=len(classes))
    assert counts.sum() == 20
    assert set(counts) == {1}
    truth = raw_files.validation_classes(raw / raw_files.DEVKIT)
    assert sorted(truth) == classes
    assert truth != classes


def test_folders_pack_to_the_same(unpacked, packed, tmp_path):
    manifest = prepare(unpacked, tmp_path / "out")
    assert [(file.name, file.sha256) for file in manifest.files] == [
        (file.name, file.sha256) for file in packed.manifest.files
    ]
    assert manifest.synthetic


def test_training_images_are_the_owner_s_bytes(raw, packed):
    _, by_class = training_images(raw)
    train = packed.split(Split.TRAIN)
    entries = [entry for entries in by_class for entry in entries]
    assert train.num_examples == len(entries) == 48
    for number, entry in enumerate(entries):
        part, row = train.locate(number)
        assert part.ragged("images")[row].tobytes() == entry.read()
        assert part.array("labels")[row] == entry.label


def test_evaluation_pixels(raw, packed, tmp_path):
    classes, _ = training_images(raw)
    validation, test = packed.split(Split.VALIDATION), packed.split(Split.TEST)
    for number, entry in enumerate(validation_images(raw, classes)):
        np.testing.assert_array_equal(
            validation.slice("pixels", number, number + 1)[0], validation_pixels(decode(entry.read()))
        )
        assert validation.slice("labels", number, number + 1) == [entry.label]
    for number, (_, label, data) in enumerate(v2_images(raw, len(classes), tmp_path)):
        np.testing.assert_array_equal(test.slice("pixels", number, number + 1)[0], v2_pixels(decode(data)))
        assert test.slice("labels", number, number + 1) == [label]


def test_v2_folders_are_class_numbers_in_numerical_order(unpacked, tmp_path):
    labels = [label for _, label, _ in v2_images(unpacked, 1000, tmp_path)]
    assert labels == sorted(labels)
    assert max(labels) >= 10  # as strings, "10" would come before "2"


def test_unusual_formats_are_stored_without_loss():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8))
    for mode, kind in (("RGB", "PNG"), ("CMYK", "JPEG"), ("L", "GIF")):
        file = io.BytesIO()
        image.convert(mode).save(file, kind)
        stored = readable("x", file.getvalue())
        assert stored[1:4] == b"PNG"
        np.testing.assert_array_equal(decode(stored), decode(file.getvalue()))
    for mode in ("RGB", "L"):
        file = io.BytesIO()
        image.convert(mode).save(file, "JPEG")
        assert readable("x", file.getvalue()) == file.getvalue()


# ---------------------------------------------------------------------------------------------------------- bad files


def cut(name, keep):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove(raw_files.TRAIN_TAR), "neither ILSVRC2012_img_train.tar nor a folder train"),
        (remove(raw_files.VAL_TAR), "neither ILSVRC2012_img_val.tar nor a folder val"),
        (remove(raw_files.V2_TAR), "neither imagenetv2-matched-frequency.tar.gz"),
        (remove(raw_files.DEVKIT), "Cannot read .*devkit"),
        (cut(raw_files.TRAIN_TAR, 0.6), r"ILSVRC2012_img_train.tar(:n\d+.tar)? is truncated"),
        (cut(raw_files.VAL_TAR, 0.5), "(ILSVRC2012_img_val.tar is truncated|holds .* images)"),
        (cut(raw_files.V2_TAR, 0.5), "imagenetv2-matched-frequency.tar.gz is truncated or damaged"),
        (cut(raw_files.DEVKIT, 0.5), "devkit"),
        (lambda folder: (folder / raw_files.TRAIN_TAR).write_bytes(b"no archive"), "is truncated or damaged"),
    ],
)
def test_bad_archives(raw, tmp_path, damage, message):
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    damage(copy)
    with pytest.raises(DataError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def first(folder, pattern):
    return sorted(folder.glob(pattern))[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: first(f, "train/*/*").write_bytes(b"\xff\xd8 short"),
            r"train/n\d+/n\d+_\d+.JPEG.* cannot be decoded",
        ),
        (lambda f: first(f, "val/*/*").write_bytes(first(f, "val/*/*").read_bytes()[:500]), r"val/.*cannot be decoded"),
        (lambda f: first(f, "imagenetv2*/*/*").write_bytes(b""), r"imagenetv2.*cannot be decoded"),
        (lambda f: first(f, "imagenetv2*/*").rename(first(f, "imagenetv2*") / "1000"), "class number from 0 to"),
        (lambda f: first(f, "val/*").rename(f / "val" / "n99999999"), "a class that the training images do not have"),
        (lambda f: shutil.rmtree(first(f, "train/*")) or (f / "train" / "n00000000").mkdir(), "holds no images"),
    ],
)
def test_bad_images(unpacked, tmp_path, damage, message):
    copy = tmp_path / "raw"
    shutil.copytree(unpacked, copy)
    damage(copy)
    with pytest.raises(DataError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
