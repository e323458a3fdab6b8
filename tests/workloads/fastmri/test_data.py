"""Masks and slices of k-space; SSIM; packing, and files that are broken."""

import shutil

import h5py
import numpy as np
import pytest
import torch

from algoperf_torch.data.packed import Packed
from algoperf_torch.errors import DataError
from algoperf_torch.kernels.ssim import ssim
from algoperf_torch.spec import Split
from algoperf_torch.workloads.fastmri import data
from algoperf_torch.workloads.fastmri.prepare import PREPARATION, prepare, read_volume
from algoperf_torch.workloads.registry import build_workload


@pytest.fixture(scope="module")
def golden(golden_metrics):
    return golden_metrics("vision")


@pytest.fixture(scope="module")
def raw(prepared):
    return prepared("fastmri").parent / "raw" / "fastmri"


# -------------------------------------------------------------------------------------------------------------- masks


def test_philox():
    """Known answers of the generator's authors."""
    zeros, ones = np.zeros((1, 4), dtype=np.uint64), np.full((1, 4), 0xFFFFFFFF, dtype=np.uint64)
    assert [hex(word) for word in data.philox(zeros, (0, 0))[0]] == [
        "0x6627e8d5",
        "0xe169c58d",
        "0xbc57ac4c",
        "0x9b00dbd8",
    ]
    key = (0xFFFFFFFF, 0xFFFFFFFF)
    assert [hex(word) for word in data.philox(ones, key)[0]] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


def test_golden_draws(golden):
    np.testing.assert_array_equal(data.stateless_uniform((0, 0), 1024), golden["mri_eval_uniform_draws"])
    np.testing.assert_array_equal(data.stateless_uniform((0, 0), 3), golden["mri_eval_uniform_draws"][:3])


@pytest.mark.parametrize("width", [74, 320, 368, 372])
def test_golden_masks(golden, width):
    np.testing.assert_array_equal(data.kept_columns(width, (0, 0)), golden[f"mri_eval_mask_{width}"])


def test_masks_keep_a_quarter_and_the_centre():
    masks = np.array([data.kept_columns(368, (2**40 + 5, number)) for number in range(400)])
    assert masks.mean() == pytest.approx(0.25, abs=0.005)
    assert masks[:, 170:199].all()  # 29 columns
    assert len(np.unique(masks, axis=0)) == 400


# ------------------------------------------------------------------------------------------------------------- slices


def test_golden_slice(golden):
    measured = data.columns(golden["mri_kspace"], crop=48)
    image = data.reconstruct(measured, data.kept_columns(74, (0, 0)))
    example = data.normalised(image, golden["mri_target"])
    np.testing.assert_allclose(example.inputs, golden["mri_out_inputs"], atol=1e-5)
    np.testing.assert_allclose(example.targets, golden["mri_out_targets"], atol=1e-5)
    assert example.mean == pytest.approx(float(golden["mri_out_mean"]), rel=1e-6)
    assert example.std == pytest.approx(float(golden["mri_out_std"]), rel=1e-6)


@pytest.mark.parametrize(("height", "width", "crop"), [(20, 16, 10), (20, 17, 10), (21, 16, 9), (20, 10, 10)])
def test_slice_is_the_centred_inverse_transform(height, width, crop):
    random = np.random.default_rng(0)
    kspace = (random.normal(size=(height, width)) + 1j * random.normal(size=(height, width))).astype(np.complex64)
    kept = random.random(width) < 0.5
    shifted = np.fft.ifftshift(kspace * kept)
    image = np.fft.fftshift(np.fft.ifft2(shifted)) * np.sqrt(height * width)
    top, left = (height - crop) // 2, (width - crop) // 2
    expected = np.abs(image[top : top + crop, left : left + crop])
    np.testing.assert_allclose(data.reconstruct(data.columns(kspace, crop), kept), expected, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- SSIM


def test_golden_ssim(golden):
    a, b, mean, std, maximum = (
        torch.from_numpy(golden[f"ssim_{name}"]) for name in ("a", "b", "mean", "std", "volume_max")
    )
    np.testing.assert_allclose(ssim(a, b, mean, std, maximum), golden["ssim_unnormalised"], atol=1e-6)
    one = torch.ones(6)
    np.testing.assert_allclose(ssim(a, b, 0 * one, one, one), golden["ssim_default"], atol=1e-6)
    a, b = (
        torch.from_numpy(np.random.RandomState(seed).standard_normal((2, 320, 320)).astype("float32"))
        for seed in (12, 13)
    )
    np.testing.assert_allclose(ssim(a, b, mean[:2], std[:2], maximum[:2]), golden["ssim_320"], atol=1e-6)


def test_golden_sums_of_a_padded_batch(golden):
    batch = {name: torch.from_numpy(golden[f"ssim_{name}"]) for name in ("mean", "std", "volume_max")}
    batch |= {"targets": torch.from_numpy(golden["ssim_b"]), "weights": torch.from_numpy(golden["l1_mask"])}
    sums = build_workload("fastmri").metric_sums(torch.from_numpy(golden["ssim_a"]), batch)
    np.testing.assert_allclose(sums[:2], golden["mri_eval_sums"], rtol=1e-6)
    assert sums[2] == golden["l1_mask"].sum()


@pytest.mark.parametrize("masked", [True, False])
def test_golden_loss_with_weights(golden, masked):
    batch = {"targets": torch.from_numpy(golden["ssim_b"])}
    if masked:
        batch["weights"] = torch.from_numpy(golden["l1_mask"])
    loss = build_workload("fastmri").loss(torch.from_numpy(golden["ssim_a"]), batch, 0.3)
    np.testing.assert_allclose(
        loss.per_example, golden["l1_per_example" if masked else "l1_per_example_unmasked"], rtol=1e-6
    )
    if masked:
        assert float(loss.summed) == pytest.approx(float(golden["l1_summed"]), rel=1e-6)
        assert float(loss.n_valid) == float(golden["l1_n_valid"])


# ------------------------------------------------------------------------------------------------------------ packing


def test_packed_slices_are_the_raw_ones(raw, prepared):
    packed = Packed.open(prepared("fastmri") / "fastmri", dataset="fastmri", preparation=PREPARATION)
    volumes = sorted((raw / "knee_singlecoil_train").glob("*.h5"))
    slices = [item for path in volumes for item in read_volume(path)]
    train = packed.split(Split.TRAIN)
    assert train.num_examples == len(slices) == 12
    for number, (kspace, target, volume_max) in enumerate(slices):
        part, row = train.locate(number)
        np.testing.assert_array_equal(part.ragged("columns")[row].reshape(-1, 320), data.columns(kspace))
        np.testing.assert_array_equal(part.array("targets")[row], target)
        assert part.array("volume_max")[row] == np.float32(volume_max)


def test_first_half_of_the_validation_files_is_the_validation_split(raw, prepared):
    packed = Packed.open(prepared("fastmri") / "fastmri", dataset="fastmri", preparation=PREPARATION)
    files = sorted((raw / "knee_singlecoil_val").glob("*.h5"))
    for split, paths in (
        (Split.VALIDATION, files[: (len(files) + 1) // 2]),
        (Split.TEST, files[(len(files) + 1) // 2 :]),
    ):
        stored = packed.split(split)
        slices = [item for path in paths for item in read_volume(path)]
        assert stored.num_examples == len(slices)
        for number, (kspace, target, _) in enumerate(slices):
            image = data.reconstruct(data.columns(kspace), data.kept_columns(kspace.shape[1], (0, 0)))
            example = data.normalised(image, target)
            np.testing.assert_array_equal(stored.slice("inputs", number, number + 1)[0], example.inputs)
            np.testing.assert_array_equal(stored.slice("targets", number, number + 1)[0], example.targets)


def test_a_training_slice_keeps_its_mask_in_every_epoch(prepared):
    workload = build_workload("fastmri", prepared("fastmri"))
    workload.open()
    make = workload.train_batches(seed=1, global_batch_size=12, rank=0, world_size=1)
    first, second = (make(draw)["inputs"] for draw in (0, 1))
    other = workload.train_batches(seed=2, global_batch_size=12, rank=0, world_size=1)(0)["inputs"]

    def sorted_rows(images):
        return images.flatten(1)[images.double().square().sum(dim=(1, 2)).argsort()]

    assert not torch.equal(first, second)
    assert torch.equal(sorted_rows(first), sorted_rows(second))
    assert not torch.equal(sorted_rows(first), sorted_rows(other))


# ---------------------------------------------------------------------------------------------------------- bad files


def truncate(path):
    path.write_bytes(path.read_bytes()[:100_000])


def change(name, value):
    def damage(path):
        with h5py.File(path, "r+") as file:
            del file[name]
            if value is not None:
                file[name] = value(4)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "Cannot read .*h5"),
        (lambda path: path.write_bytes(b"nothing"), "Cannot read .*h5"),
        (change("kspace", None), "has no dataset 'kspace'"),
        (change("reconstruction_esc", None), "has no dataset 'reconstruction_esc'"),
        (change("kspace", lambda n: np.ones((n, 320, 640), np.complex64)), "kspace is complex64 .*expected complex64"),
        (change("kspace", lambda n: np.ones((n, 640, 368), np.complex128)), "kspace is complex128"),
        (change("kspace", lambda n: np.ones((n, 640, 300), np.complex64)), "width 300"),
        (change("kspace", lambda n: np.zeros((n, 640, 368), np.complex64)), "slice 0: empty"),
        (
            change("reconstruction_esc", lambda n: np.ones((n + 1, 320, 320), np.float32)),
            "reconstruction_esc is float32",
        ),
        (change("reconstruction_esc", lambda n: np.full((n, 320, 320), np.nan, np.float32)), "not finite"),
        (lambda path: path.unlink(), "holds no volumes|one volume"),
    ],
)
def test_bad_volumes(raw, tmp_path, damage, message):
    copy = tmp_path / "raw"
    (copy / "knee_singlecoil_train").mkdir(parents=True)
    shutil.copytree(raw / "knee_singlecoil_val", copy / "knee_singlecoil_val")
    source = sorted((raw / "knee_singlecoil_train").glob("*.h5"))[0]
    shutil.copy(source, copy / "knee_singlecoil_train")
    damage(copy / "knee_singlecoil_train" / source.name)
    with pytest.raises(DataError, match=message):
        prepare(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_folder(raw, tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="knee_singlecoil_train or singlecoil_train"):
        prepare(tmp_path / "raw", tmp_path / "out")
