"""Augmentations agree with straightforward implementations and never create new labels."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from pspexp.data.augment.cropping import NoAugment, ScaleCropFlip, SemsegAugment
from pspexp.data.augment.geometry import Crop
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


def enhanced(image: Image.Image, rng: np.random.Generator, jitter: float) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + rng.uniform(-jitter, jitter))
    return image


@pytest.mark.parametrize("name", ["scale_crop_flip", "semseg"])
def test_random_numbers_are_drawn_in_the_same_order_as_ever(name: str) -> None:
    """An option that is off draws none: the crops of earlier versions can be reproduced."""
    image, label = make_sample()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scale, places = rng.uniform(0.5, 2.0), rng.random(2)
        if name == "semseg":
            augment: Any = SemsegAugment(33, 0.5, 2.0, 0.5, 10.0, 0.0, 0.5, 1.1, MEAN, 255)
            flip, _, blur = rng.random(3) < 0.5
        else:
            augment = ScaleCropFlip(33, 0.5, 2.0, 0.5, MEAN, 255, color_jitter=0.3)
            flip, blur = rng.random() < 0.5, False
        box, size = [0.0] * 4, [0, 0]
        for axis, length in enumerate(image.size):
            scaled = round(length * scale)
            size[axis] = min(scaled, 33)
            start = int(places[axis] * (scaled - size[axis] + 1))
            box[axis], box[axis + 2] = start * length / scaled, (start + size[axis]) * length / scaled
        canvas, ids = Image.new("RGB", (33, 33), COLOUR), Image.new("L", (33, 33), 255)
        corner = ((33 - size[0]) // 2, (33 - size[1]) // 2)
        canvas.paste(image.resize((size[0], size[1]), Image.Resampling.BILINEAR, tuple(box)), corner)
        ids.paste(label.resize((size[0], size[1]), Image.Resampling.NEAREST, tuple(box)), corner)
        if blur:
            canvas = canvas.filter(ImageFilter.GaussianBlur(1.1))
        if flip:
            canvas, ids = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (canvas, ids))
        if name == "scale_crop_flip":
            canvas = enhanced(canvas, rng, 0.3)
        got, got_ids = augment(image, label, np.random.default_rng(seed))
        assert (got.tobytes(), got_ids.tobytes()) == (canvas.tobytes(), ids.tobytes())


def shares(ids: Image.Image) -> float:
    """The share of the labelled pixels that the most frequent class has."""
    pixels = ids.histogram()[:255]
    return max(pixels) / max(sum(pixels), 1)


@pytest.mark.parametrize("rotate", [None, 0.0, 1.0])
def test_crops_filled_by_one_class_are_drawn_again(rotate: float | None) -> None:
    image, label = Image.new("RGB", (60, 60)), Image.new("L", (60, 60))
    label.paste(1, (40, 0, 60, 60))
    label.paste(255, (0, 0, 60, 10))
    found = {}
    for ratio in (None, 1.0, 0.75):
        if rotate is None:
            augment: Any = ScaleCropFlip(20, 1.0, 1.0, 0.0, MEAN, 255, cat_max_ratio=ratio)
        else:
            augment = SemsegAugment(20, 1.0, 1.0, 0.0, 10.0, rotate, 0.0, 1.1, MEAN, 255, cat_max_ratio=ratio)
        crops = [augment(image, label, np.random.default_rng(seed)) for seed in range(100)]
        found[ratio] = [crop[1].tobytes() for crop in crops]
        dominated = sum(shares(crop[1]) >= 0.75 for crop in crops)
        assert dominated > 60 if ratio != 0.75 else dominated < 20  # (70 %)¹¹ is 2 %
    assert found[None] == found[1.0]
    kept = [a == b for a, b in zip(found[None], found[0.75], strict=True)]
    assert 10 < sum(kept) < 50  # a first crop that is varied enough is kept


def test_a_crop_is_drawn_again_ten_times_at_most() -> None:
    class Counting:
        def __init__(self) -> None:
            self.rng, self.pairs = np.random.default_rng(0), 0

        def random(self, size: int) -> Any:
            self.pairs += 1
            return self.rng.random(size)

    crop, rng = Crop(8, MEAN, 255, 0.75), Counting()
    label = Image.new("L", (32, 32), 3)
    crop.choose(crop.window(label.size, 1.0, rng), lambda window: crop.label(label, window), rng)  # type: ignore[arg-type]
    assert rng.pairs == 1 + 10
    small = Counting()
    crop.choose(crop.window(label.size, 0.25, small), lambda window: crop.label(label, window), small)  # type: ignore[arg-type]
    assert small.pairs == 1  # there is no other crop of this image


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 375), 512 / 375), ((2048, 1024), 0.5), ((375, 500), 512 / 375), ((3000, 300), 2048 / 3000)],
)
def test_base_size_limits_the_long_and_the_short_side(size: tuple[int, int], expected: float) -> None:
    label = Image.new("L", size, 1)
    augment = ScaleCropFlip(4096, 0.5, 0.5, 0.0, MEAN, 255, base_size=[2048, 512])
    ids = augment(Image.new("RGB", size), label, np.random.default_rng(0))[1]
    (left, top, right, bottom) = ids.point(lambda value: value == 1 and 255).getbbox() or (0, 0, 0, 0)
    assert (right - left, bottom - top) == tuple(round(side * expected / 2) for side in size)


def test_colours_change_before_the_padding_is_added() -> None:
    image, label = make_sample(20, 12)
    augment = ScaleCropFlip(32, 1.0, 1.0, 0.5, MEAN, 255, photometric=True, jpeg_probability=1.0)
    for seed in range(20):
        got, ids = (np.asarray(part) for part in augment(image, label, np.random.default_rng(seed)))
        assert (got[ids == 255] == COLOUR).all()


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


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"base_size": [512, 2048]}, r"base_size=\[512, 2048\]: the long side comes first; use \[2048, 512\]"),
        ({"base_size": [512]}, "base_size="),
        ({"cat_max_ratio": 0.0}, "cat_max_ratio=0.0"),
        ({"jpeg_quality": [90, 30]}, r"jpeg_quality=\[90, 30\]: the lowest quality comes first"),
        ({"jpeg_quality": [0, 30]}, "jpeg_quality.0=0"),
        ({"mix": "mixup"}, "mix=mixup: must be 'cutmix' or 'classmix'"),
        ({"grayscale_probability": 0.1, "mean": [0.5] * 4}, "grayscale_probability=0.1: is for RGB images, but mean"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        ScaleCropFlip(
            **{"mean": MEAN, **options},
            crop_size=9,
            scale_min=1.0,
            scale_max=1.0,
            flip_probability=0.0,
            ignore_index=255,
        )
