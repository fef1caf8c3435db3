"""Augmentations agree with straightforward implementations and never create new labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from pspexp.data.transforms import NoAugment, ScaleCropFlip, SemsegAugment, normalize, to_tensors
from pspexp.errors import UserError

MEAN = [0.485, 0.456, 0.406]
COLOUR = (124, 116, 104)


def make_sample(width: int = 61, height: int = 47) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8))
    label = np.kron(rng.integers(0, 5, (height // 7 + 1, width // 7 + 1)), np.ones((7, 7))).astype(np.uint8)
    return image.resize((width, height)), Image.fromarray(label[:height, :width])


def scale_crop_flip(crop: int, low: float, high: float, flip: float = 0.0) -> ScaleCropFlip:
    return ScaleCropFlip(crop, low, high, flip, MEAN, 255)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.37, 2.0])
def test_cropping_before_resizing_equals_cropping_after(scale: float) -> None:
    image, label = make_sample()
    size = (round(61 * scale), round(47 * scale))
    whole = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(int)
    whole_label = np.asarray(label.resize(size, Image.Resampling.NEAREST))
    for seed in range(5):
        got, got_label = scale_crop_flip(20, scale, scale)(image, label, np.random.default_rng(seed))
        crops = [
            (y, x)
            for y in range(size[1] - 19)
            for x in range(size[0] - 19)
            if np.abs(whole[y : y + 20, x : x + 20] - np.asarray(got)).max() <= 1
        ]
        assert len(crops) == 1
        y, x = crops[0]
        assert (whole_label[y : y + 20, x : x + 20] == np.asarray(got_label)).mean() > 0.99


def test_small_images_are_centred_and_padded() -> None:
    image, label = make_sample(10, 6)
    got, got_label = scale_crop_flip(16, 1.0, 1.0)(image, label, np.random.default_rng(0))
    pixels, ids = np.asarray(got), np.asarray(got_label)
    assert (pixels[5:11, 3:13] == np.asarray(image)).all()
    assert (ids[5:11, 3:13] == np.asarray(label)).all()
    ids = ids.copy()
    ids[5:11, 3:13] = 255
    assert (ids == 255).all()
    assert tuple(pixels[0, 0]) == COLOUR


def test_flip_mirrors_image_and_label() -> None:
    image, label = make_sample(16, 16)
    got, got_label = scale_crop_flip(16, 1.0, 1.0, flip=1.0)(image, label, np.random.default_rng(0))
    assert (np.asarray(got) == np.asarray(image)[:, ::-1]).all()
    assert (np.asarray(got_label) == np.asarray(label)[:, ::-1]).all()


def test_scale_and_flip_follow_their_distributions() -> None:
    image, label = Image.new("RGB", (40, 40)), Image.fromarray(np.zeros((40, 40), np.uint8))
    label.paste(1, (0, 0, 20, 40))
    augment = scale_crop_flip(80, 0.5, 2.0, flip=0.5)
    sides, flips = [], 0
    for seed in range(400):
        ids = np.asarray(augment(image, label, np.random.default_rng(seed))[1])
        sides.append((ids[40] != 255).sum())
        flips += ids[40][ids[40] != 255][0] == 0
    assert 19 <= min(sides) <= 22
    assert 78 <= max(sides) <= 80
    assert abs(np.mean(sides) - 50) < 3  # uniform, not log-uniform (43)
    assert abs(flips - 200) < 40


def test_crops_reach_every_part_of_the_image() -> None:
    image = Image.new("RGB", (30, 20))
    label = Image.fromarray(np.arange(30, dtype=np.uint8)[None].repeat(20, 0))
    lefts = {
        int(np.asarray(scale_crop_flip(8, 1.0, 1.0)(image, label, np.random.default_rng(s))[1])[0, 0])
        for s in range(300)
    }
    assert lefts == set(range(23))


@pytest.mark.parametrize("name", ["scale_crop_flip", "semseg", "none"])
def test_results_have_the_crop_size_and_depend_only_on_the_rng(name: str) -> None:
    augment = {
        "scale_crop_flip": scale_crop_flip(33, 0.5, 2.0, 0.5),
        "semseg": SemsegAugment(33, 0.5, 2.0, 0.5, 10.0, 0.5, 0.5, 1.1, MEAN, 255),
        "none": NoAugment(33, MEAN, 255),
    }[name]
    results = []
    for width, height in ((61, 47), (20, 50), (33, 33), (1, 1)):
        sample = make_sample(width, height)
        before = np.asarray(sample[0]).copy()
        for seed in range(8):
            first = augment(*sample, np.random.default_rng(seed))
            again = augment(*sample, np.random.default_rng(seed))
            assert [part.size for part in first] == [(33, 33)] * 2
            assert [part.tobytes() for part in first] == [part.tobytes() for part in again]
            assert set(np.unique(first[1])) <= {0, 1, 2, 3, 4, 255}
            results.append(first[0].tobytes())
        assert (np.asarray(sample[0]) == before).all()
    assert (len(set(results)) == 4) == (name == "none")


def test_image_and_label_are_rotated_alike_about_the_centre() -> None:
    image = Image.new("RGB", (64, 64))
    image.paste((200, 0, 0), (40, 20, 60, 28))
    label = Image.new("L", (64, 64))
    label.paste(1, (40, 20, 60, 28))
    augment = SemsegAugment(64, 1.0, 1.0, 0.0, 10.0, 1.0, 0.0, 1.1, MEAN, 255)
    turned = []
    for seed in range(12):
        got, ids = (np.asarray(part) for part in augment(image, label, np.random.default_rng(seed)))
        inside = ids != 255
        assert ((got[..., 0] > 100) == (ids == 1))[inside].mean() > 0.995
        ys, xs = np.nonzero(ids == 1)
        centre = complex(xs.mean() - 31.5, ys.mean() - 31.5)
        start = complex(49.5 - 31.5, 23.5 - 31.5)
        assert abs(abs(centre) - abs(start)) < 0.5
        turned.append(np.degrees(np.angle(centre / start)))
    assert -10.5 < min(turned) < -2
    assert 2 < max(turned) < 10.5


def test_no_augment_crops_the_centre() -> None:
    image, label = make_sample(40, 20)
    got, ids = NoAugment(30, MEAN, 255)(image, label, np.random.default_rng(0))
    assert (np.asarray(got)[5:25] == np.asarray(image)[:, 5:35]).all()
    assert (np.asarray(ids)[5:25] == np.asarray(label)[:, 5:35]).all()
    assert (np.asarray(ids)[:5] == 255).all()


def test_tensors_and_normalisation() -> None:
    image, label = make_sample(5, 3)
    pixels, ids = to_tensors(image, label)
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 3, 5))
    assert (ids.dtype, tuple(ids.shape)) == (torch.uint8, (3, 5))
    std = [0.229, 0.224, 0.225]
    expected = ((np.asarray(image) / 255 - MEAN) / std).transpose(2, 0, 1)
    got = normalize(pixels[None], MEAN, std, torch.float64)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-12)
    assert normalize(pixels[None], MEAN, std).dtype == torch.float32
    assert normalize(pixels[None], MEAN, std, torch.bfloat16).dtype == torch.bfloat16
    assert pixels.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 0.5, 2.0, 0.5), "crop_size=0"),
        ((9, 2.0, 0.5, 0.5), "scale_min=2.0"),
        ((9, 0.0, 0.5, 0.5), "scale_min=0.0"),
        ((9, 0.5, 2.0, 1.5), "flip_probability=1.5"),
    ],
)
def test_invalid_settings_are_refused(arguments: tuple[int, float, float, float], match: str) -> None:
    with pytest.raises(UserError, match=match):
        ScaleCropFlip(*arguments, MEAN, 255)
