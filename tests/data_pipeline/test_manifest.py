"""Manifests, new folders, and the list of datasets."""

import json
import os
from dataclasses import replace

import pytest

from algoperf_torch.data.datasets import check_folder, dataset, dataset_folder, dataset_names, load_datasets
from algoperf_torch.data.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    new_folder,
    read_manifest,
    record_files,
    with_manifest,
    write_manifest,
)
from algoperf_torch.errors import DataError, UnknownNameError, UsageError
from algoperf_torch.spec import LossKind, WorkloadSpec

SPEC = WorkloadSpec(
    name="variant",
    base="base",
    dataset="mnist",
    loss=LossKind.SOFTMAX_CROSS_ENTROPY,
    metric="accuracy",
    metrics=("accuracy", "loss"),
    num_train=1000,
    num_eval_train=200,
    num_validation=150,
    num_test=150,
    batch_size=10,
    eval_batch_size=100,
)


@pytest.fixture
def folder(tmp_path):
    """A folder of two files with their manifest."""
    path = tmp_path / "mnist"
    (path / "deep").mkdir(parents=True)
    (path / "a").write_bytes(b"first")
    (path / "deep" / "b").write_bytes(b"second")
    files = record_files(path, ["deep/b", "a"])
    write_manifest(path, Manifest(dataset="mnist", examples={"train": 5, "validation": 2, "test": 1}, files=files))
    return path


def test_round_trip(folder):
    manifest = read_manifest(folder)
    assert [record.name for record in manifest.files] == ["a", "deep/b"]
    assert manifest.files[0].bytes == 5
    assert manifest.files[0].sha256 == "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    assert not manifest.synthetic
    write_manifest(folder, replace(manifest, synthetic=True, facts={"height": 3}))
    assert read_manifest(folder).facts == {"height": 3}
    assert read_manifest(folder).synthetic
    assert sorted(path.name for path in folder.iterdir()) == ["a", "deep", MANIFEST]
    read_manifest(folder).check(folder)


def test_no_manifest(tmp_path):
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        '"text"',
        '{"files": []}',
        '{"dataset": "mnist", "examples": {}, "files": 3}',
        '{"dataset": "mnist", "examples": {"train": "many"}, "files": []}',
        '{"dataset": "mnist", "examples": {"train": -1}, "files": []}',
        '{"dataset": "mnist", "examples": [], "files": []}',
        '{"dataset": "mnist", "examples": {}, "files": [{"size": 3}]}',
        '{"dataset": "mnist", "examples": {}, "files": [], "colour": "red"}',
        b"\xff\xfe",
    ],
    ids=str,
)
def test_malformed_manifest(folder, text):
    (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"manifest\.json is not a manifest"):
        read_manifest(folder)


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_damaged_files(folder, damage, sums):
    path = folder / "deep" / "b"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"sec" if damage == "truncated" else b"sEcond")
    if damage == "altered" and not sums:
        read_manifest(folder).check(folder, sums=False)
        return
    message = {"missing": "Missing data file", "truncated": "has 3 bytes, expected 6", "altered": "was altered"}[damage]
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(folder).check(folder, sums=sums)
    assert str(path) in str(caught.value)


def test_md5_where_there_is_no_better_sum(tmp_path):
    (tmp_path / "a").write_bytes(b"first")
    FileRecord(name="a", md5="8b04d5e3775d298e78455efc5ca404d5").check(tmp_path)
    with pytest.raises(DataError, match="its md5 is 8b04"):
        FileRecord(name="a", md5="0" * 32).check(tmp_path)


def test_counts_of_the_folder_replace_those_of_the_spec(folder):
    spec = with_manifest(SPEC, read_manifest(folder))
    assert (spec.num_train, spec.num_eval_train, spec.num_validation, spec.num_test) == (5, 5, 2, 1)
    assert replace(spec, num_train=1000, num_eval_train=200, num_validation=150, num_test=150) == SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "cifar"}, "holds 'cifar', workload variant needs 'mnist'"),
        ({"examples": {"train": 5, "validation": 0, "test": 1}}, "validation split of mnist is empty"),
        ({"examples": {"validation": 1, "test": 1}}, "train split of mnist is empty"),
    ],
    ids=str,
)
def test_folder_that_does_not_fit(folder, changes, message):
    with pytest.raises(DataError, match=message):
        with_manifest(SPEC, replace(read_manifest(folder), **changes))


def test_workload_without_test_split_needs_none(folder):
    manifest = replace(read_manifest(folder), examples={"train": 5, "validation": 2})
    assert with_manifest(replace(SPEC, num_test=0), manifest).num_test == 0


# ------------------------------------------------------------------------------------------------ new folders


def test_new_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "more" / "data"
    with new_folder(target) as folder:
        (folder / "a").write_text("x")
        assert not target.exists()
    assert (target / "a").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), DataError("bad")], ids=repr)
def test_nothing_is_left_of_a_folder_that_failed(tmp_path, error):
    def fail():
        with new_folder(tmp_path / "data") as folder:
            (folder / "a").write_text("x")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_our_error(tmp_path):
    with (
        pytest.raises(UsageError, match=r"Cannot write .*data: No space left on device"),
        new_folder(tmp_path / "data"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_existing_folder(tmp_path):
    target = tmp_path / "data"
    target.mkdir()
    with new_folder(target) as folder:  # an empty one is taken
        (folder / "a").write_text("1")
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"), new_folder(target):
        pass
    with new_folder(target, overwrite=True) as folder:
        (folder / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    with pytest.raises(ValueError, match="broken"), new_folder(target, overwrite=True):
        raise ValueError("broken")
    assert [path.name for path in target.iterdir()] == ["b"]


def test_folder_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Cannot write"), new_folder(tmp_path / "file" / "data"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"), new_folder(tmp_path / "data"):
        pass


# ------------------------------------------------------------------------------------------------ datasets


def test_unknown_dataset():
    with pytest.raises(UnknownNameError, match=r"Unknown dataset 'minst'. Must be one of: .*mnist"):
        dataset("minst")


def test_every_dataset_has_code():
    for name in dataset_names():
        assert dataset(name).part("workload").build


def test_missing_part_is_a_usage_error_and_other_missing_modules_are_not():
    with pytest.raises(UsageError, match="Dataset mnist has no `algoperf data prepare`"):
        dataset("mnist").part("prepare")


@pytest.mark.parametrize("text", ["[a", "a = 1", '[a]\ntitle = "x"', '[a]\ncolour = "red"'], ids=str)
def test_list_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "list.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="as a list of datasets"):
        load_datasets(path)
    with pytest.raises(UsageError, match="absent"):
        load_datasets(tmp_path / "absent.toml")


def test_folder_with_manifest_is_checked_against_it(folder):
    assert check_folder(folder.parent, "mnist").examples["train"] == 5
    (folder / "a").write_bytes(b"fifth")
    with pytest.raises(DataError, match="was altered"):
        check_folder(folder.parent, "mnist")
    assert check_folder(folder.parent, "mnist", sums=False) is not None


def test_folder_without_manifest_is_checked_against_what_is_published(tmp_path):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataError, match="Missing data file"):
        check_folder(tmp_path, "mnist")


def test_data_directory_that_is_a_file(tmp_path):
    (tmp_path / "mnist").write_text("")
    with pytest.raises(DataError, match="No data of mnist"):
        dataset_folder(tmp_path, "mnist")


def test_manifest_is_readable_json(folder):
    assert json.loads((folder / MANIFEST).read_text())["examples"] == {"test": 1, "train": 5, "validation": 2}
