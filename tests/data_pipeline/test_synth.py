"""`algoperf data synth` and `algoperf data verify`, on mnist and cifar."""

import numpy as np
import pytest

from algoperf_torch.cli import main as algoperf
from algoperf_torch.data.manifest import MANIFEST, read_manifest
from algoperf_torch.workloads.registry import build_workload

FILES = {
    "mnist": [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ],
    "cifar": [
        *(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        "cifar-10-batches-py/test_batch",
    ],
}
datasets = pytest.mark.parametrize("name", FILES)


def synth(name, out, *more):
    return algoperf(["data", "synth", name, "--out", str(out), *more])


def verify(name, data_dir, *more):
    return algoperf(["data", "verify", name, "--data-dir", str(data_dir), *more])


@datasets
def test_files_and_manifest(name, tmp_path, capsys):
    assert synth(name, tmp_path, "--examples", "100") == 0
    assert "100 train, 25 validation, 25 test examples" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / name)
    assert [record.name for record in manifest.files] == FILES[name]
    assert manifest.synthetic
    assert manifest.examples == {"train": 100, "validation": 25, "test": 25}
    assert verify(name, tmp_path) == 0
    assert f"{len(FILES[name])} files, sizes and checksums as its manifest says, synthetic" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [name]


@datasets
def test_same_seed_same_bytes(name, tmp_path):
    sums = []
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert synth(name, tmp_path / out, "--examples", "40", "--seed", seed) == 0
        sums.append([record.sha256 for record in read_manifest(tmp_path / out / name).files])
    assert sums[0] == sums[1]
    assert not set(sums[0]) & set(sums[2])


@datasets
@pytest.mark.parametrize("examples", ["1", "7"])
def test_very_few_examples(name, tmp_path, examples):
    assert synth(name, tmp_path, "--examples", examples) == 0
    workload = build_workload(name, tmp_path)
    workload.open()
    assert workload.spec.num_train == int(examples)
    assert workload.spec.num_validation == 1


@datasets
def test_classes_look_different_and_examples_vary(name, tmp_path):
    from algoperf_torch.spec import Split

    synth(name, tmp_path, "--examples", "400")
    workload = build_workload(name, tmp_path)
    workload.open()
    batch = workload.eval_examples(Split.EVAL_TRAIN, 0, 400, seed=0)
    images, labels = batch["inputs"].flatten(1).numpy(), batch["targets"].numpy()
    assert sorted(set(labels.tolist())) == list(range(10))
    assert len(np.unique(images, axis=0)) == 400


@datasets
@pytest.mark.parametrize("bad", [["--examples", "0"], ["--examples", "-5"], ["--seed", "-1"]], ids=str)
def test_bad_options(name, tmp_path, bad, capsys):
    assert synth(name, tmp_path, *bad) == 2
    assert "--examples must be at least 1 and --seed at least 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_dataset(tmp_path, capsys):
    for command in (synth, verify):
        assert command("minst", tmp_path) == 2
        assert "Unknown dataset 'minst'" in capsys.readouterr().err


def test_existing_data_are_not_overwritten_by_accident(tmp_path, capsys):
    assert synth("mnist", tmp_path, "--examples", "10") == 0
    before = (tmp_path / "mnist" / MANIFEST).read_text()
    assert synth("mnist", tmp_path, "--examples", "20") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mnist" / MANIFEST).read_text() == before
    assert synth("mnist", tmp_path, "--examples", "20", "--overwrite") == 0
    assert read_manifest(tmp_path / "mnist").examples["train"] == 20


@datasets
def test_verify_names_every_bad_file(name, tmp_path, capsys):
    synth(name, tmp_path, "--examples", "50")
    missing, truncated, altered = (tmp_path / name / file for file in FILES[name][:3])
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:-1])
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)
    capsys.readouterr()
    assert verify(name, tmp_path) == 2
    output = capsys.readouterr()
    for path, reason in ((missing, "Missing"), (truncated, "truncated or replaced"), (altered, "was altered")):
        assert any(str(path) in line and reason in line for line in output.out.splitlines()), reason
    assert f"3 of {len(FILES[name])} files" in output.err
    assert verify(name, tmp_path, "--no-sums") == 2
    assert "2 of" in capsys.readouterr().err


@datasets
def test_altered_file_stops_the_workload(name, tmp_path):
    synth(name, tmp_path, "--examples", "50")
    path = tmp_path / name / FILES[name][-1]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    from algoperf_torch.errors import DataError

    with pytest.raises(DataError, match="was altered") as caught:
        build_workload(name, tmp_path).open()
    assert str(path) in str(caught.value)


def test_verify_without_data(tmp_path, capsys):
    assert verify("mnist", tmp_path) == 2
    assert "algoperf data synth mnist" in capsys.readouterr().err


def test_published_files_are_verified_without_a_manifest(tmp_path, capsys):
    synth("mnist", tmp_path, "--examples", "10")
    (tmp_path / "mnist" / MANIFEST).unlink()
    assert verify("mnist", tmp_path) == 2
    assert "expected 9,912,422" in capsys.readouterr().out
