"""Masks as palette images and overlays."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data import masks
from pspexp.data.dataset import DatasetInfo
from pspexp.data.labels import VOC_COLOURS


@pytest.fixture
def info() -> DatasetInfo:
    palette = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    return DatasetInfo(["road", "Bäume", "sky"], 255, [0.5] * 3, [0.2] * 3, palette)


def test_blend_shows_class_colours_and_fades_ignored_pixels(info: DatasetInfo) -> None:
    image, label = np.full((1, 3, 3), 128, np.uint8), np.array([[0, 1, 255]], np.uint8)
    red, green, ignored = masks.blend(image, label, info)[0].astype(int)
    assert red.argmax() == 0
    assert green.argmax() == 1
    assert ignored.min() > 200
    opaque = masks.blend(image, label, info, opacity=1.0)
    np.testing.assert_array_equal(opaque[0, 0], info.palette[0])


def test_large_images_are_blended_alike(info: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, ids = rng.integers(0, 256, (50, 40, 3), np.uint8), rng.integers(0, 3, (50, 40), np.uint8)
    whole = masks.blend(image, ids, info)
    monkeypatch.setattr(masks, "STRIP_PIXELS", 7 * 40)
    np.testing.assert_array_equal(masks.blend(image, ids, info), whole)


def test_palette_image_holds_ids_and_shows_colours(info: DatasetInfo) -> None:
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    image = masks.palette_image(ids, info)
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), ids)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[0, 1], info.palette[1])
    np.testing.assert_array_equal(np.asarray(image.convert("RGB"))[1, 1], [255, 255, 255])


def test_overlay_has_a_legend_of_its_classes(info: DatasetInfo) -> None:
    ids = np.array([[0, 0, 0, 1], [0, 0, 1, 255]], np.uint8)
    entries = masks.legend_entries([ids], info, ignored="not predicted")
    assert [(name, share) for name, share, _ in entries] == [("road", 0.625), ("Bäume", 0.25), ("not predicted", 0.125)]
    for size in ((4, 2), (400, 200)):
        picture = masks.overlay(Image.new("RGB", size, (128, 128, 128)), np.resize(ids, size[::-1]), info)
        assert picture.width >= size[0]
        assert picture.height > size[1]
        legend = np.asarray(picture)[size[1] :].reshape(-1, 3)
        for colour in info.palette[:2]:
            assert (legend == colour).all(1).any()


def test_legend_sums_up_what_does_not_fit() -> None:
    ids = np.repeat(np.arange(101, dtype=np.uint8), 10).reshape(10, 101)
    ids[:, 0] = 100
    info = DatasetInfo([f"class {i}" for i in range(101)], 255, [0.5] * 3, [0.5] * 3, np.zeros((101, 3), np.uint8))
    *shown, (last, share, _) = masks.legend_entries([ids], info, ignored="ignored")
    assert len(shown) == masks.MAX_LEGEND
    assert shown[0][0] == "class 100"  # the largest
    assert last == "and 71 more"
    assert share + sum(one for _, one, _ in shown) == pytest.approx(1)


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "猫", "\udcff", "\0", "", "x" * 5000, "$a$"])
def test_overlay_of_any_class_name(name: str) -> None:
    info = DatasetInfo([name], 255, [0.5] * 3, [0.2] * 3, np.zeros((1, 3), np.uint8))
    picture = masks.overlay(Image.new("RGB", (40, 20)), np.zeros((20, 40), np.uint8), info)
    assert 40 <= picture.width < 1000
    assert picture.height > 20


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        (None, "L", [[0, 1, 255]]),
        ([7, 8], "L", [[7, 8, 255]]),
        ([0, 1000], "I;16", [[0, 1000, 255]]),
        ([(0, 0, 0), (1, 2, 3)], "RGB", [[[0, 0, 0], [1, 2, 3], [255, 255, 255]]]),
    ],
)
def test_ids_as_the_label_values_of_the_data_set(values: Any, mode: str, expected: Any) -> None:
    info = DatasetInfo(["a", "b"], 255, [0.5] * 3, [0.5] * 3, VOC_COLOURS[:2], label_values=values)
    image = masks.label_image(np.array([[0, 1, 255]], np.uint8), info)
    assert image.mode == mode
    assert np.asarray(image).tolist() == expected
