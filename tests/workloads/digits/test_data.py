"""The digits inside scikit-learn: read directly, split once and for all, refused when altered."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
import torch

from algoperf_torch.errors import DataError
from algoperf_torch.spec import Split
from algoperf_torch.workloads.digits import SPECS, data
from algoperf_torch.workloads.digits.data import MEAN, STD, WHITE, digits_file, load_digits, read_table

SPEC = SPECS["digits"]


def test_content_is_that_of_scikit_learn():
    from sklearn.datasets import load_digits as peer

    table, bunch = read_table(digits_file()), peer()
    np.testing.assert_array_equal(table[:, :-1], bunch.data)
    np.testing.assert_array_equal(table[:, -1], bunch.target)


def test_splits_are_fixed_and_share_nothing():
    splits = load_digits(SPEC)
    sizes = {split: len(examples.labels) for split, examples in splits.items()}
    assert sizes == {Split.TRAIN: 1_197, Split.VALIDATION: 300, Split.TEST: 300}
    assert splits[Split.VALIDATION].labels[:8].tolist() == [4, 6, 6, 0, 5, 1, 7, 8]
    every = torch.cat([torch.cat([s.images.flatten(1), s.labels[:, None].float()], dim=1) for s in splits.values()])
    table = read_table(digits_file())
    restored = (every[:, :-1].numpy() * STD + MEAN) * WHITE
    found = np.column_stack([restored.round().astype(np.uint8), every[:, -1].numpy().astype(np.uint8)])
    assert sorted(map(bytes, found)) == sorted(map(bytes, table))


def test_every_class_is_in_every_split():
    for split, examples in load_digits(SPEC).items():
        counts = torch.bincount(examples.labels, minlength=10)
        assert counts.min() >= 0.05 * len(examples.labels), split


def test_pixels_are_normalised():
    every = torch.cat([examples.images for examples in load_digits(SPEC).values()])
    assert abs(every.mean().item()) < 1e-3
    assert every.std().item() == pytest.approx(1, abs=1e-3)


def test_scikit_learn_is_not_imported():
    code = (
        "import sys; from algoperf_torch.workloads.registry import build_workload; build_workload('digits').open()\n"
        "sys.exit('sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def altered(content):
    return content.replace(b"0,0,5,13", b"0,0,5,12", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: gzip.compress(altered(content)), "checksum"),
        (lambda content: gzip.compress(content[:1000]), "Cannot read|checksum"),
        (lambda content: gzip.compress(content)[:2000], "Cannot read"),
        (
            lambda content: gzip.compress(content)[:200] + b"\xff" * 9 + gzip.compress(content)[209:],
            "Cannot read|checksum",
        ),
        (lambda content: gzip.compress(b""), "checksum|Cannot read"),
        (lambda content: gzip.compress(b"a,b\n"), "Cannot read"),
        (lambda content: gzip.compress(b"300,1\n"), "Cannot read"),
        (lambda content: content, "Cannot read"),
        (lambda content: b"", "Cannot read|checksum"),
    ],
    ids=["altered", "short", "truncated", "damaged", "empty", "text", "range", "no gzip", "nothing"],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_damaged_file(tmp_path, change, message):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(change(gzip.decompress(digits_file().read_bytes())))
    with pytest.raises(DataError, match=message) as caught:
        load_digits(SPEC, path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the digits from .*absent"):
        load_digits(SPEC, tmp_path / "absent")


def test_missing_package(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits_file()
