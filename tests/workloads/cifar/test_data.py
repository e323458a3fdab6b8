"""Pickled batches: read without running what is in them, written as Python 2 did, refused when damaged."""

import io
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from algoperf_torch.data.sampler import EpochSampler
from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.cifar import SPECS
from algoperf_torch.workloads.cifar.data import ARCHIVE, FOLDER, TEST, TRAIN, load_cifar, parse_batch, write_batch
from algoperf_torch.workloads.cifar.workload import MEAN, STD, crop_and_flip
from algoperf_torch.workloads.registry import build_workload

SPEC = replace(SPECS["cifar"], num_train=12, num_validation=3, num_test=3)


def images(count, seed=0):
    return np.random.RandomState(seed).randint(0, 256, size=(count, 3072)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Five batches of three training images, one of three test images, unpacked."""
    (tmp_path / FOLDER).mkdir()
    for number, name in enumerate((*TRAIN, *TEST)):
        write_batch(tmp_path / FOLDER / name, images(3, seed=number), [number, number + 1, number + 2], name)
    return tmp_path


def pack(folder):
    """The same as the one archive that is distributed."""
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        archive.add(folder / FOLDER, arcname=FOLDER)
    for path in (folder / FOLDER).iterdir():
        path.unlink()
    (folder / FOLDER).rmdir()


def test_written_batch_is_a_pickle_of_python_2(folder):
    content = (folder / FOLDER / "data_batch_2").read_bytes()
    batch = pickle.loads(content, encoding="bytes")
    assert set(batch) == {b"batch_label", b"labels", b"data", b"filenames"}
    assert batch[b"labels"] == [1, 2, 3]
    assert batch[b"filenames"] == [b"1_0.png", b"2_1.png", b"3_2.png"]
    np.testing.assert_array_equal(batch[b"data"], images(3, seed=1))
    assert batch[b"data"].flags.c_contiguous
    assert content.startswith(b"\x80\x02}")
    assert b"X" not in [
        opcode.code.encode() for opcode, _, _ in __import__("pickletools").genops(content)
    ]  # no unicode


def test_torchvision_reads_what_we_write(folder, monkeypatch):
    from torchvision.datasets import CIFAR10

    pack(folder)
    with tarfile.open(folder / ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / FOLDER / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"] * 10}, protocol=2))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    peer = CIFAR10(str(folder), train=True)
    ours = load_cifar(folder, SPEC)
    stored = torch.cat([ours[Split.TRAIN].images, ours[Split.VALIDATION].images])
    np.testing.assert_array_equal(stored.permute(0, 2, 3, 1).numpy(), peer.data)
    assert torch.cat([ours[Split.TRAIN].labels, ours[Split.VALIDATION].labels]).tolist() == peer.targets


@pytest.mark.parametrize("packed", [False, True])
def test_splits_follow_the_order_of_the_files(folder, packed):
    if packed:
        pack(folder)
    splits = load_cifar(folder, SPEC)
    labels = [number + place for number in range(5) for place in range(3)]
    assert splits[Split.TRAIN].labels.tolist() == labels[:12]
    assert splits[Split.VALIDATION].labels.tolist() == labels[12:]
    assert splits[Split.TEST].labels.tolist() == [5, 6, 7]
    assert splits[Split.TEST].images[1, 2, 3, 4].item() == images(3, seed=5)[1, 2 * 1024 + 3 * 32 + 4]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("keys", [str, str.encode], ids=["str", "bytes"])
def test_batches_pickled_by_python_3_are_read(protocol, keys):
    content = pickle.dumps({keys("data"): images(2), keys("labels"): [3, 4]}, protocol=protocol)
    batch = parse_batch(content, "here")
    assert batch.labels.tolist() == [3, 4]
    np.testing.assert_array_equal(batch.images.flatten(1).numpy(), images(2))


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def test_nothing_in_a_pickle_is_run(tmp_path):
    import os

    for call, arguments in (
        (os.system, (f"touch {tmp_path}/run",)),
        (eval, ("1+1",)),
        (open, (f"{tmp_path}/run", "w")),
    ):
        content = pickle.dumps({"data": Evil(call, *arguments), "labels": []}, protocol=2)
        with pytest.raises(DataError, match=r"here is not a batch of CIFAR-10: UnpicklingError: .* not allowed"):
            parse_batch(content, "here")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": [1]}, "KeyError: 'data'"),
        ({"data": images(2)}, "KeyError: 'labels'"),
        ([1, 2], "not a batch"),
        (None, "not a batch"),
        ({"data": images(2), "labels": [1]}, r"`labels` is int64 \(1,\)"),
        ({"data": images(2), "labels": [1, 2, 3]}, "one integer for each image"),
        ({"data": images(2), "labels": [1.0, 2.0]}, "`labels` is float64"),
        ({"data": images(2), "labels": ["cat", "dog"]}, "`labels` is <U3"),
        ({"data": images(2), "labels": [1, 10]}, "label 10 of example 1 is not in 0 to 9"),
        ({"data": images(2), "labels": [-1, 9]}, "label -1 of example 0"),
        ({"data": images(2)[:, :-1], "labels": [1, 2]}, r"`data` is uint8 \(2, 3071\)"),
        ({"data": images(2).astype(np.float32), "labels": [1, 2]}, "`data` is float32"),
        ({"data": images(2).reshape(2, 3, 32, 32), "labels": [1, 2]}, r"\(2, 3, 32, 32\)"),
        ({"data": [1, 2], "labels": [1, 2]}, "`data` is int64"),
    ],
    ids=str,
)
def test_bad_content(batch, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_batch(pickle.dumps(batch, protocol=2), "/there/data_batch_1")
    assert "/there/data_batch_1" in str(caught.value)


@pytest.mark.parametrize("cut", [0, 1, 100, 5_000, -1])
def test_truncated_batch(folder, cut):
    path = folder / FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="data_batch_3 is not a batch"):
        load_cifar(folder, SPEC)


@pytest.mark.parametrize("name", [*TRAIN, *TEST])
@pytest.mark.parametrize("packed", [False, True])
def test_missing_batch(folder, name, packed):
    (folder / FOLDER / name).unlink()
    if packed:
        pack(folder)
    with pytest.raises(DataError, match=rf"has no member {FOLDER}/{name}" if packed else rf"Cannot read .*{name}"):
        load_cifar(folder, SPEC)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "html", "missing"])
def test_bad_archive(folder, damage):
    pack(folder)
    path = folder / ARCHIVE
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.write_bytes(b"" if damage == "empty" else b"<html>Not found</html>")
    with pytest.raises(DataError, match=ARCHIVE):
        load_cifar(folder, SPEC)


def test_archive_may_not_name_files_outside(folder):
    """Members are read, never written to disk; one that is a link or lies elsewhere is no batch."""
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name in (*TRAIN, *TEST):
            link = tarfile.TarInfo(f"{FOLDER}/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        outside = tarfile.TarInfo("../../escaped")
        outside.size = 4
        archive.addfile(outside, io.BytesIO(b"evil"))
    for path in (folder / FOLDER).iterdir():
        path.unlink()
    (folder / FOLDER).rmdir()
    with pytest.raises(DataError):
        load_cifar(folder, SPEC)
    assert [path.name for path in folder.iterdir()] == [ARCHIVE]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_train": 13}, "training batches hold 15 images, expected 16"),
        ({"num_test": 10_000}, "test batch holds 3 images, expected 10,000"),
    ],
    ids=str,
)
def test_wrong_number_of_examples(folder, sizes, message):
    with pytest.raises(DataError, match=message):
        load_cifar(folder, replace(SPEC, **sizes))


def test_files_that_are_not_the_published_ones_are_refused(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    folder.rename(root / "cifar")
    with pytest.raises(DataError, match="data_batch_1 was altered: its md5 is"):
        build_workload("cifar", root).open()


# ------------------------------------------------------------------------------------------------ augmentation


def peer_crop_and_flip(image, top, left, flip):
    """One image at a time, as the words say it."""
    padded = np.zeros((3, 40, 40), dtype=np.uint8)
    padded[:, 4:36, 4:36] = image
    cropped = padded[:, top : top + 32, left : left + 32]
    return cropped[:, :, ::-1] if flip else cropped


def test_crop_and_flip_equals_one_image_at_a_time():
    random = np.random.RandomState(0)
    batch = random.randint(0, 256, size=(50, 3, 32, 32)).astype(np.uint8)
    offsets, flips = random.randint(0, 9, size=(50, 2)), random.rand(50) < 0.5
    found = crop_and_flip(torch.from_numpy(batch), torch.from_numpy(offsets), torch.from_numpy(flips))
    expected = [peer_crop_and_flip(*each) for each in zip(batch, *offsets.T, flips, strict=True)]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))
    assert found.is_contiguous()


def test_augmentation_uses_every_offset_and_both_directions():
    workload, sampler = build_workload("cifar"), EpochSampler(10_000, 4_000, seed=0)
    marked = torch.zeros(4_000, 3, 32, 32, dtype=torch.uint8)
    marked[:, :, 15, 10] = 255  # stays inside, whatever the crop
    inputs = workload.augmented_inputs(marked, sampler, 0)
    assert inputs.shape == (4_000, 3, 32, 32)
    rows, columns = (inputs[:, 0] == inputs[:, 0].max()).nonzero()[:, 1:].T
    assert sorted(rows.unique().tolist()) == list(range(11, 20))
    assert sorted(columns.unique().tolist()) == sorted({*range(6, 15), *(31 - column for column in range(6, 15))})
    assert 0.45 < (columns < 15.5).float().mean().item() < 0.55
    assert torch.bincount(rows).amax() < 1.3 * 4_000 / 9


def test_padding_is_black_before_it_is_normalised():
    workload = build_workload("cifar")
    white = torch.full((500, 3, 32, 32), 255, dtype=torch.uint8)
    inputs = workload.augmented_inputs(white, EpochSampler(500, 500, seed=0), 0)
    for channel in range(3):
        black = (0 - MEAN[channel]) / STD[channel]
        assert inputs[:, channel].min().item() == pytest.approx(black, abs=1e-6)


def test_evaluation_inputs_are_normalised_only():
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(
        3, 1, 1
    )
    torch.testing.assert_close(build_workload("cifar").inputs(pixels), expected.float())
