"""Model scale mini of the workloads on pictures: small ones, from the raw files to a step and an evaluation."""

import numpy as np
import pytest
import torch

from algoperf_torch.data.packed import Packed
from algoperf_torch.data.prepare import PrepareOptions
from algoperf_torch.data.prepare import main as prepare
from algoperf_torch.data.synth import SynthOptions
from algoperf_torch.data.synth import main as synthesise
from algoperf_torch.errors import DataError, UsageError
from algoperf_torch.spec import EVALUATION_SPLITS, Split
from algoperf_torch.workloads.fastmri import data as slices
from algoperf_torch.workloads.fastmri.prepare import read_volume, volumes
from algoperf_torch.workloads.imagenet.data import decode, v2_pixels, validation_pixels
from algoperf_torch.workloads.imagenet.raw import training_images, v2_images, validation_images
from algoperf_torch.workloads.registry import build_workload

GENERATED = {"imagenet": (80, "side=48"), "fastmri": (16, "crop=64")}  # training examples and settings
NAMES = ("imagenet_resnet", "imagenet_vit", "fastmri")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A directory with both data sets as model scale mini has them, prepared in `data` from `raw`."""
    root = tmp_path_factory.mktemp("small")
    for name, (examples, setting) in GENERATED.items():
        synthesise(SynthOptions(dataset=name, out=root / "raw", examples=examples, set=(setting,)))
        prepare(PrepareOptions(dataset=name, raw=root / "raw", out=root / "data", workers=1))
    return root


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_evaluates(small, name):
    workload = build_workload(name, small / "data", model_scale="mini")
    workload.open()
    torch.manual_seed(0)
    model = workload.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    make = workload.train_batches(seed=0, global_batch_size=workload.spec.batch_size, rank=0, world_size=1)
    losses = []
    for _ in range(2):
        batch = workload.finish_batch(make(0))
        loss = workload.loss(workload.forward(model, batch), batch)
        optimizer.zero_grad()
        (loss.summed / loss.n_valid).backward()
        optimizer.step()
        losses.append(float(loss.summed.detach()))
    picture = (64, 64) if name == "fastmri" else (3, 48, 48)
    assert batch["inputs"].shape == (workload.spec.batch_size, *picture)
    assert losses[1] < losses[0]
    model.eval()
    for split in EVALUATION_SPLITS:
        with torch.no_grad():
            chunks = [workload.finish_batch(batch) for _, batch in workload.eval_batches(split, seed=5)]
            sums = torch.stack(
                [workload.evaluate_chunk(model, lambda batch: model(batch["inputs"]), c) for c in chunks]
            )
        found = workload.metrics(sums, split)
        assert set(found) == set(workload.spec.metrics)
        assert all(np.isfinite(value) for value in found.values())
        assert all(chunk["inputs"].shape[1:] == picture for chunk in chunks)


def test_images_are_packed_at_their_size(small, tmp_path):
    raw, packed = (
        small / "raw" / "imagenet",
        Packed.open(small / "data" / "imagenet", dataset="imagenet", preparation=1),
    )
    classes, by_class = training_images(raw)
    images = [picture(entry) for entries in by_class for entry in entries]
    assert all(34 <= min(image.size) <= max(image.size) <= 85 for image in images)
    validation = [validation_pixels(picture(entry), 48) for entry in validation_images(raw, classes)]
    np.testing.assert_array_equal(packed.split(Split.VALIDATION).slice("pixels", 0, len(validation)), validation)
    test = [v2_pixels(decode(data), 48) for _, _, data in v2_images(raw, len(classes), tmp_path)]
    np.testing.assert_array_equal(packed.split(Split.TEST).slice("pixels", 0, len(test)), test)


def picture(entry):
    return decode(entry.read())


def test_slices_are_packed_at_their_size(small):
    train = Packed.open(small / "data" / "fastmri", dataset="fastmri", preparation=1).split(Split.TRAIN)
    files = volumes(small / "raw" / "fastmri", ["knee_singlecoil_train"])
    for number, (kspace, target, _) in enumerate(item for path in files for item in read_volume(path, crop=64)):
        part, row = train.locate(number)
        assert kspace.shape[0] == 128
        np.testing.assert_array_equal(part.ragged("columns")[row].reshape(-1, 64), slices.columns(kspace, 64))
        np.testing.assert_array_equal(part.array("targets")[row], target)


def test_generated_slices_are_what_was_measured(small):
    """With all columns, the inverse transform of the k-space is the target."""
    for path in volumes(small / "raw" / "fastmri", ["knee_singlecoil_val"]):
        for kspace, target, _ in read_volume(path, crop=64):
            image = slices.reconstruct(slices.columns(kspace, 64), np.ones(kspace.shape[1], dtype=bool))
            np.testing.assert_allclose(image, target, atol=1e-3 * target.max())


@pytest.mark.parametrize(
    ("name", "small_size", "large_size"), [("imagenet_resnet", 48, 224), ("fastmri", 64, 320)], ids=["images", "slices"]
)
def test_data_of_another_size(small, prepared, name, small_size, large_size):
    workload = build_workload(name, prepared(build_workload(name).spec.dataset), model_scale="mini")
    with pytest.raises(DataError, match=f"{large_size} x {large_size} pixels, model scale 'mini' needs {small_size} x"):
        workload.open()
    with pytest.raises(DataError, match=f"{small_size} x {small_size} pixels, model scale 'test' needs {large_size} x"):
        build_workload(name, small / "data", model_scale="test").open()


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [("imagenet", "side=31", "must be from 32 to 224"), ("fastmri", "crop=321", "must be from 16 to 320")],
)
def test_sizes_that_do_not_work(tmp_path, name, setting, message):
    with pytest.raises(UsageError, match=message):
        synthesise(SynthOptions(dataset=name, out=tmp_path, examples=4, set=(setting,)))
    assert not list(tmp_path.iterdir())
