"""Pixels: crops, RandAugment, evaluation, mixup; against stored numbers and torchvision."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from algoperf_torch.errors import DataError
from algoperf_torch.workloads.imagenet import data


@pytest.fixture(scope="module")
def golden(golden_metrics):
    return golden_metrics("vision")


@pytest.fixture(scope="module")
def photo(golden):
    """The 300 x 400 image of the stored evaluation pixels."""
    pixels = np.random.RandomState(18).randint(0, 256, size=(75, 100, 3)).astype(np.uint8)
    return Image.fromarray(pixels.repeat(4, axis=0).repeat(4, axis=1))


def jpeg(width, height, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    smooth = np.random.RandomState(seed).randint(0, 256, size=(4, 4, *shape[2:])).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(smooth).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------- training


def test_golden_rand_augment(golden):
    image = Image.fromarray(golden["aug_image"])
    names = golden["aug_names"].tolist()
    assert {name.rstrip("+-") for name in names} == set(data.OPERATIONS)
    for name, stored in zip(names, golden["aug_outputs"], strict=True):
        sign, name = -1 if name.endswith("-") else 1, name.rstrip("+-")
        if name.startswith("Translate"):
            found = data._affine(image, translate=(9 * sign, 0) if name.endswith("X") else (0, 9 * sign))
        elif name == "Cutout":
            found = data.cutout(image, 5, 20, half=5)
        else:
            found = data.OPERATIONS[name](image, sign, 0, 0)
        np.testing.assert_array_equal(found, stored, err_msg=name)


def test_rand_augment_draws(monkeypatch):
    """Two of the sixteen, with replacement, by the numbers that are given; the sign and the point go along."""
    calls = []
    monkeypatch.setattr(
        data,
        "OPERATIONS",
        {name: lambda image, *rest, name=name: calls.append((name, *rest)) or image for name in data.OPERATIONS},
    )
    image = Image.new("RGB", (224, 100))
    data.rand_augment(image, np.array([0.0, 0.2, 0.0, 0.999, 0.99, 0.7, 0.0, 0.0]))
    names = list(data.OPERATIONS)
    assert [(name, sign) for name, sign, *_ in calls] == [(names[0], 1), (names[-1], -1)]
    assert calls[0][2:] == pytest.approx((224, 100 - 0.999 * 99))


def test_crop_is_torchvision_s_in_distribution():
    """Crops of our numbers against torchvision's own draws: mean area and aspect, and the place of the centre."""
    random = np.random.default_rng(0)
    image = torch.zeros(3, 300, 400)
    torch.manual_seed(0)
    theirs = np.array([v2.RandomResizedCrop.get_params(image, data.CROP_AREA, data.CROP_ASPECT) for _ in range(4_000)])
    ours = np.array([data.random_crop(400, 300, random.random(data.CROP_DRAWS)) for _ in range(4_000)])
    ours = ours[:, [1, 0, 3, 2]]  # top, left, height, width

    def summary(crops):
        top, left, height, width = crops.T.astype(float)
        values = [height * width / 120_000, np.log(width / height), (left + width / 2) / 400, (top + height / 2) / 300]
        return np.array([value.mean() for value in values] + [value.std() for value in values])

    np.testing.assert_allclose(summary(ours), summary(theirs), atol=0.015)
    assert np.all(ours[:, 0] + ours[:, 2] <= 300)
    assert np.all(ours[:, 1] + ours[:, 3] <= 400)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 1_000), (0, 433, 100, 133)), ((1_000, 100), (433, 0, 133, 100)), ((10, 1_000), (0, 493, 10, 13))],
)
def test_crop_that_never_fits(size, expected):
    draws = np.ones((data.CROP_ATTEMPTS, 4)) * 0.999  # the whole area at an aspect that the image does not have
    assert data.random_crop(*size, draws.ravel()) == expected


@pytest.mark.parametrize("flip", [0.2, 0.7])
def test_training_pixels_are_pillow_s(flip):
    encoded = jpeg(300, 200)
    draws = np.random.default_rng(1).random(data.num_draws(augmented=False))
    draws[data.CROP_DRAWS] = flip
    left, top, width, height = data.random_crop(300, 200, draws[: data.CROP_DRAWS])
    image = Image.open(io.BytesIO(encoded)).convert("RGB").crop((left, top, left + width, top + height))
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    if flip < 0.5:
        expected = expected[:, ::-1]
    found = data.training_pixels(encoded, draws, augmented=False)
    np.testing.assert_array_equal(found, expected.transpose(2, 0, 1))


def test_augmentation_is_a_function_of_its_numbers():
    encoded = jpeg(300, 200)
    draws = np.random.default_rng(2).random((2, data.num_draws(augmented=True)))
    first, again, other = (data.training_pixels(encoded, row, augmented=True) for row in (*draws[[0, 0, 1]],))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_grey_images_have_three_channels():
    pixels = data.training_pixels(jpeg(90, 80, "L"), np.zeros(data.num_draws(augmented=False)), augmented=False)
    assert pixels.shape == (3, 224, 224)
    assert np.array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"no image", lambda d: b""])
def test_bad_image(damage):
    with pytest.raises(DataError, match="cannot be decoded"):
        data.decode(damage(jpeg(90, 80)))


def test_lengths_of_augmentation_go_with_the_size():
    """A translation is 100 of 224 pixels, half the side of Cutout's square 40."""
    random = np.random.default_rng(3)
    for side, distance, half in ((224, 100, 40), (48, 21, 8)):
        image = Image.fromarray(random.integers(0, 256, size=(side, side, 3), dtype=np.uint8))
        for name, offset in (("TranslateX", (-distance, 0)), ("TranslateY", (0, -distance))):
            assert data.OPERATIONS[name](image, -1, 0, 0) == data._affine(image, translate=offset)
        assert data.OPERATIONS["Cutout"](image, 1, 20, 30) == data.cutout(image, 20, 30, half=half)


# --------------------------------------------------------------------------------------------------------- evaluation


def test_golden_validation_pixels(golden, photo):
    pixels = data.normalise(torch.from_numpy(data.validation_pixels(photo))[None])[0]
    np.testing.assert_allclose(pixels[:, ::7, ::7], golden["eval_pixels_strided"], atol=1e-5)
    assert float(pixels.double().sum()) == pytest.approx(float(golden["eval_pixels_sum"]), abs=0.1)


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (256, 256), (257, 333), (100, 90), (224, 1_001)])
def test_validation_pixels_are_torchvision_s(size):
    image = data.decode(jpeg(*size))
    for side, resized in ((224, 256), (48, 54)):
        expected = v2.Compose([v2.Resize(resized), v2.CenterCrop(side)])(image)
        np.testing.assert_array_equal(data.validation_pixels(image, side), np.asarray(expected).transpose(2, 0, 1))


def test_golden_test_pixels(golden, photo):
    assert data.v2_crop(*photo.size) == tuple(golden["test_crop"])
    pixels = data.normalise(torch.from_numpy(data.v2_pixels(photo))[None])[0]
    np.testing.assert_allclose(pixels[:, ::7, ::7], golden["test_pixels_strided"], atol=2e-5)


def test_golden_resize_weights(golden):
    taps, weights = data.bicubic_taps(29, 24)
    matrix = np.zeros((24, 29))
    for tap, weight in zip(taps, weights, strict=True):
        np.add.at(matrix, (np.arange(24), tap), weight)
    np.testing.assert_allclose(matrix, golden["test_resize_weights_29_to_24"], atol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (5, 400), (224, 224), (256, 256)])
def test_test_pixels_of_any_size(size):
    flat = Image.new("RGB", size, (10, 100, 200))
    pixels = data.v2_pixels(flat)
    assert pixels.shape == (3, 224, 224)
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), [10, 100, 200], rtol=1e-5)


# -------------------------------------------------------------------------------------------------------------- mixup


def test_golden_mixup(golden):
    inputs, labels = (torch.from_numpy(golden[name]) for name in ("mixup_inputs", "mixup_labels"))
    weight = torch.tensor(float(golden["mixup_weight"]))
    mixed, targets = data.mixup(*(torch.cat([x[-1:], x]) for x in (inputs, labels)), weight, 1000)
    np.testing.assert_allclose(mixed, golden["mixup_out_inputs"], atol=1e-6)
    np.testing.assert_array_equal(targets.nonzero(), golden["mixup_out_target_index"])
    np.testing.assert_allclose(targets[targets > 0], golden["mixup_out_target_value"], atol=1e-6)
    assert torch.allclose(targets.sum(dim=1), torch.ones(4))
