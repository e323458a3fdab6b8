"""Packed folders: what is written is read back; interrupted, doubled and damaged ones are told apart."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial

import numpy as np
import pytest

from algoperf_torch.data.manifest import read_manifest
from algoperf_torch.data.packed import Job, Packed, PartWriter, _ArrayFile, pack, source_files
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import Split


def rows_of(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, size=10 + seed)
    return rng.normal(size=(10 + seed, 3)).astype(np.float32), rng.integers(0, 99, size=lengths.sum()), lengths


def write_numbers(part: PartWriter, seed):
    fixed, values, lengths = rows_of(seed)
    part.append("fixed", fixed[:4])
    part.append("fixed", fixed[4:])
    middle = len(lengths) // 2
    cut = lengths[:middle].sum()
    part.append_ragged("ragged", values[:cut], lengths[:middle])
    part.append_ragged("ragged", values[cut:], lengths[middle:])


JOBS = [Job(Split.TRAIN, "a", 1), Job(Split.TRAIN, "b", 2), Job(Split.TRAIN, "c", 3), Job(Split.VALIDATION, "a", 4)]


def fill(packing, write=write_numbers, jobs=JOBS):
    packing.asset("words.txt", lambda path: path.write_text("some words"))
    packing.run(jobs, write)
    return {"answer": 42}


def make(out, write=write_numbers, *, settings=None, jobs=JOBS, **options):
    return pack(
        out,
        partial(fill, write=write, jobs=jobs),
        dataset="numbers",
        preparation=3,
        settings=settings or {"raw": []},
        **options,
    )


def opened(out):
    return Packed.open(out, dataset="numbers", preparation=3)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_round_trip(tmp_path, workers):
    out = tmp_path / "packed"
    manifest = make(out, write_numbers, workers=workers)
    assert manifest.examples == {"train": 11 + 12 + 13, "validation": 14}
    packed = opened(out)
    assert packed.facts["answer"] == 42
    train = packed.split(Split.TRAIN)
    assert [part.name for part in train.parts] == ["a", "b", "c"]
    expected = np.concatenate([rows_of(seed)[0] for seed in (1, 2, 3)])
    np.testing.assert_array_equal(train.slice("fixed", 0, 36), expected)
    for part, seed in zip(train.parts, (1, 2, 3), strict=True):
        _, values, lengths = rows_of(seed)
        ragged = part.ragged("ragged")
        np.testing.assert_array_equal(ragged.lengths, lengths)
        for row, expected_row in enumerate(np.split(values, lengths.cumsum()[:-1])):
            np.testing.assert_array_equal(ragged[row], expected_row)
    assert not list(tmp_path.glob(".*"))  # neither a partial folder nor a lock is left
    assert not list(out.glob(".*"))


def fill_and_join(packing, write):
    packing.run(JOBS, write)
    packing.join(Split.TRAIN)
    packing.join(Split.VALIDATION)  # a single part stays as it is
    return {}


def write_with_flat(part, seed):
    write_numbers(part, seed)
    part.append_flat("beside", np.arange(5 * seed))


def test_parts_can_be_joined(tmp_path):
    out = tmp_path / "packed"
    fill_it = partial(fill_and_join, write=write_with_flat)
    pack(out, fill_it, dataset="numbers", preparation=3, settings={})
    (part,) = opened(out).split(Split.TRAIN).parts
    assert part.num_examples == 36
    np.testing.assert_array_equal(part.array("fixed"), np.concatenate([rows_of(seed)[0] for seed in (1, 2, 3)]))
    np.testing.assert_array_equal(part.array("beside"), np.concatenate([np.arange(5 * seed) for seed in (1, 2, 3)]))
    ragged = part.ragged("ragged")
    np.testing.assert_array_equal(ragged.values, np.concatenate([rows_of(seed)[1] for seed in (1, 2, 3)]))
    np.testing.assert_array_equal(ragged.lengths, np.concatenate([rows_of(seed)[2] for seed in (1, 2, 3)]))
    assert [path.name for path in (out / "train").iterdir()] == ["joined"]
    assert [part.name for part in opened(out).split(Split.VALIDATION).parts] == ["a"]


def fill_from_scratch(packing):
    records = packing.run(JOBS[:3], write_numbers, scratch=True)
    folders = [packing.folder / record.split / record.name for record in records]
    packing.run([Job(Split.VALIDATION, "sums", folders)], write_sums)
    return {}


def write_sums(part, folders):
    for folder in folders:
        part.append("sums", np.load(folder / "fixed.npy").sum(axis=0, keepdims=True))


def test_scratch_parts_are_removed(tmp_path):
    out = tmp_path / "packed"
    manifest = pack(out, fill_from_scratch, dataset="numbers", preparation=3, settings={})
    assert manifest.examples == {"validation": 3}
    assert not list((out / "train").iterdir())
    np.testing.assert_allclose(
        opened(out).split(Split.VALIDATION).slice("sums", 0, 3), [rows_of(seed)[0].sum(axis=0) for seed in (1, 2, 3)]
    )


def test_rows_across_parts(tmp_path):
    make(tmp_path / "packed")
    train = opened(tmp_path / "packed").split(Split.TRAIN)
    whole = np.concatenate([rows_of(seed)[0] for seed in (1, 2, 3)])
    for start, stop in [(0, 5), (0, 11), (10, 12), (5, 30), (11, 23), (22, 36)]:
        np.testing.assert_array_equal(train.slice("fixed", start, stop), whole[start:stop])
        read = train.read("fixed", start, stop)
        np.testing.assert_array_equal(read, whole[start:stop])
        assert read.flags.owndata
        assert read.flags.writeable
    index = np.random.default_rng(0).permutation(36)
    np.testing.assert_array_equal(train.take("fixed", index), whole[index])
    for position in range(36):
        part, row = train.locate(position)
        np.testing.assert_array_equal(part.array("fixed")[row], whole[position])


def test_arrays_open_with_numpy_alone(tmp_path):
    make(tmp_path / "packed")
    np.testing.assert_array_equal(np.load(tmp_path / "packed/validation/a/fixed.npy"), rows_of(4)[0])


def test_finished_folder_is_left_alone(tmp_path):
    out = tmp_path / "packed"
    make(out)
    before = (out / "manifest.json").stat().st_mtime_ns
    make(out, forbidden)
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_other_settings_need_overwrite(tmp_path):
    out = tmp_path / "packed"
    make(out)
    with pytest.raises(UsageError, match="--overwrite"):
        make(out, settings={"raw": ["other"]})
    assert opened(out).manifest.examples["train"] == 36
    make(out, settings={"raw": ["other"]}, jobs=JOBS[1:], overwrite=True)
    assert opened(out).manifest.examples["train"] == 25


def forbidden(part, seed):
    raise AssertionError("This part was already written.")


def fails_at_three(part, seed):
    write_numbers(part, seed)
    if seed == 3:
        raise DataError("raw/three.csv: line 7 has 2 columns, expected 3.")


def only_three_and_later(part, seed):
    if seed < 3:
        forbidden(part, seed)
    write_numbers(part, seed)


def test_bad_raw_data_leave_nothing_and_the_rest_is_kept(tmp_path):
    out = tmp_path / "packed"
    with pytest.raises(DataError, match=r"three.csv: line 7"):
        make(out, fails_at_three)
    assert not out.exists()
    make(out, only_three_and_later)  # parts 1 and 2 are not written again
    np.testing.assert_array_equal(opened(out).split(Split.TRAIN).slice("fixed", 0, 11), rows_of(1)[0])


def test_changed_raw_files_begin_anew(tmp_path):
    out = tmp_path / "packed"
    with pytest.raises(DataError):
        make(out, fails_at_three)
    with pytest.raises(AssertionError):
        make(out, only_three_and_later, settings={"raw": ["changed"]})


def slow_write(part, seed):
    write_numbers(part, seed)
    if seed == 3:
        time.sleep(60)


def make_slowly(out):
    make(out, slow_write)


@pytest.mark.slow
def test_killed_preparation_goes_on(tmp_path):
    out = tmp_path / "packed"
    process = multiprocessing.get_context("spawn").Process(target=make_slowly, args=(out,))
    process.start()
    journal = tmp_path / ".packed.partial" / ".journal"
    deadline = time.monotonic() + 60
    while len(list(journal.glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UsageError, match="Another process"):
        make(out)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not out.exists()
    make(out, only_three_and_later)
    assert opened(out).manifest.examples == {"train": 36, "validation": 14}


def test_full_disk(tmp_path, monkeypatch):
    out = tmp_path / "packed"
    append = _ArrayFile.append

    def append_until_full(self, rows):
        if self._path.parent.name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(_ArrayFile, "append", append_until_full)
        with pytest.raises(DataError, match="No space left"):
            make(out)
    assert not out.exists()
    make(out)
    assert opened(out).manifest.examples["train"] == 36


def test_empty_part(tmp_path):
    with pytest.raises(DataError, match="Nothing to pack in train/a"):
        make(tmp_path / "packed", lambda part, seed: None)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="algoperf data prepare numbers"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="--data-dir"):
        opened(None)


def test_other_dataset_or_preparation(tmp_path):
    make(tmp_path / "packed")
    with pytest.raises(DataError, match="'numbers', preparation 3; 'letters'"):
        Packed.open(tmp_path / "packed", dataset="letters", preparation=3)
    with pytest.raises(DataError, match="preparation 4"):
        Packed.open(tmp_path / "packed", dataset="numbers", preparation=4)


def flip_last_byte(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def test_altered_file(tmp_path):
    out = tmp_path / "packed"
    make(out)
    flip_last_byte(out / "train/b/fixed.npy")
    with pytest.raises(DataError, match=r"train/b/fixed.npy was altered"):
        opened(out)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_truncated_or_missing_file(tmp_path, damage):
    out = tmp_path / "packed"
    make(out)
    path = out / "validation/a/ragged.npy"
    if damage == "remove":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(DataError, match=r"validation/a/ragged.npy"):
        opened(out)


def test_file_that_is_truncated_while_it_is_open(tmp_path):
    out = tmp_path / "packed"
    make(out)
    train = opened(out).split(Split.TRAIN)
    train.read("fixed", 0, 36)
    path = out / "train/b/fixed.npy"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(DataError, match=r"train/b/fixed.npy ends early"):
        train.read("fixed", 0, 36)
    path.unlink()
    with pytest.raises(DataError, match=r"Cannot read .*train/b/fixed.npy"):
        train.read("fixed", 0, 36)


def test_altered_manifest(tmp_path):
    out = tmp_path / "packed"
    make(out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["facts"]["parts"] = "many"
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="does not list any parts"):
        opened(out)


def test_copied_folder_is_checked_once(tmp_path, monkeypatch):
    out, copy = tmp_path / "packed", tmp_path / "copy"
    make(out)
    shutil.copytree(out, copy, copy_function=shutil.copyfile)
    opened(copy)  # new modification times: all checksums are compared
    monkeypatch.setattr("algoperf_torch.data.manifest.digest", lambda *_: pytest.fail("checked again"))
    opened(copy)


def test_rows_must_agree(tmp_path):
    part = PartWriter(tmp_path, JOBS[0])
    part.append("x", np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="float32 rows of shape"):
        part.append("x", np.zeros((2, 3)))
    part.append("y", np.zeros(3, dtype=np.int8))
    with pytest.raises(ValueError, match="different numbers of examples"):
        part.close()
    with pytest.raises(ValueError, match="lengths add up to 3"):
        part.append_ragged("z", np.zeros(2), np.array([1, 2]))
    part.abandon()


def test_source_files(tmp_path):
    (tmp_path / "a.csv").write_text("123")
    assert [entry[:2] for entry in source_files([tmp_path / "a.csv"], tmp_path)] == [["a.csv", 3]]
    with pytest.raises(DataError, match=r"Missing raw file .*b.csv"):
        source_files([tmp_path / "b.csv"], tmp_path)


def test_files_of_a_split(tmp_path):
    out = tmp_path / "packed"
    make(out)
    names = {path.relative_to(out).as_posix() for path in opened(out).files(Split.VALIDATION)}
    assert names == {f"validation/a/{name}.npy" for name in ("fixed", "ragged", "ragged_offsets")}
    manifest = read_manifest(out)
    assert {file.name for file in manifest.files} >= names | {"words.txt"}
