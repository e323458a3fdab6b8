"""`algoperf data generate`: the data of a version in one command."""

import pytest

from algoperf_torch.cli import main as algoperf
from algoperf_torch.data.generate import RAW
from algoperf_torch.data.manifest import MANIFEST, read_manifest
from algoperf_torch.spec import Generation


def version_file(folder, **datasets):
    path = folder / "small.toml"
    tables = "".join(f"[data.{name}]\n{settings}\n" for name, settings in datasets.items())
    path.write_text(f'inherits = "local"\nname = "small"\nmodel_scale = "mini"\n{tables}')
    return path


def generate(folder, version, *more):
    return algoperf(["data", "generate", "--version", str(version), "--out", str(folder), "--workers", "1", *more])


@pytest.fixture
def version(tmp_path):
    return version_file(tmp_path, criteo1tb="examples = 500\nseed = 3", ogbg="examples = 32")


def test_makes_what_is_missing(tmp_path, version, capsys):
    data = tmp_path / "data"
    assert generate(data, version) == 0
    assert sorted(path.name for path in data.iterdir()) == ["criteo1tb", "ogbg"]
    manifest = read_manifest(data / "criteo1tb")
    assert manifest.synthetic
    assert manifest.generation == Generation(examples=500, seed=3)
    assert manifest.examples["train"] == 500
    assert "there already" not in capsys.readouterr().out
    (data / "ogbg" / MANIFEST).unlink()
    assert generate(data, version, "--datasets", "criteo1tb") == 0
    assert "there already" in capsys.readouterr().out
    assert generate(data, version) == 2  # a folder without a manifest may be anything
    assert "holds other data than 32 generated examples" in " ".join(capsys.readouterr().err.split())
    assert generate(data, version, "--overwrite", "--keep-raw") == 0
    assert capsys.readouterr().out.count("there already") == 1
    assert read_manifest(data / "ogbg").generation == Generation(examples=32)
    assert [path.name for path in (data / RAW).iterdir()] == ["ogbg"]


def test_goes_on_from_raw_files(tmp_path, version, monkeypatch):
    data = tmp_path / "data"
    assert generate(data, version, "--datasets", "ogbg", "--keep-raw") == 0
    first = read_manifest(data / "ogbg")
    (data / "ogbg").rename(tmp_path / "elsewhere")
    monkeypatch.setattr("algoperf_torch.data.synth.write", lambda *_, **__: pytest.fail("written again"))
    assert generate(data, version, "--datasets", "ogbg") == 0
    assert read_manifest(data / "ogbg") == first
    assert not (data / RAW).exists()


def test_altered_data_are_told(tmp_path, version, capsys):
    data = tmp_path / "data"
    assert generate(data, version, "--datasets", "criteo1tb") == 0
    next(data.rglob("labels.npy")).write_bytes(b"")
    assert generate(data, version, "--datasets", "criteo1tb") == 2
    assert "truncated or replaced" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--datasets", "mnist"], "Unknown dataset of version small 'mnist'"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--version", "local"], "Version local has no generated data"),
    ],
    ids=["dataset", "workers", "version"],
)
def test_mistakes(tmp_path, version, capsys, more, text):
    assert algoperf(["data", "generate", "--version", str(version), "--out", str(tmp_path / "data"), *more]) == 2
    assert text in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "data").exists()


def test_another_generator_is_told(tmp_path, capsys):
    version = version_file(tmp_path, ogbg="examples = 32\ngenerator = 99")
    assert generate(tmp_path / "data", version) == 2
    assert "The generator of ogbg in this package is number 1; the version has 99" in " ".join(
        capsys.readouterr().err.split()
    )


def test_settings_of_a_generator_are_checked(tmp_path, capsys):
    assert algoperf(["data", "synth", "ogbg", "--out", str(tmp_path), "--set", "size=3"]) == 2
    assert "Unknown setting 'size'" in capsys.readouterr().err
