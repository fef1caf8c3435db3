"""Images of every mode, orientation and size."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.images import ORIENTATION, read_image
from pspexp.errors import UserError


def picture(height: int = 6, width: int = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def grey(mode: str) -> Image.Image:
    return Image.fromarray(picture()).convert("L").convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGB", "png"), ("RGBA", "png")],
        *[("RGB", "bmp"), ("RGB", "tif"), ("CMYK", "tif"), ("RGBA", "tif"), ("L", "webp"), ("CMYK", "jpg")],
    ],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    image = grey("L").convert("RGB").convert(mode)
    image.save(file, **({"quality": 100, "lossless": True} if suffix in ("jpg", "webp") else {}))
    found = read_image(file)
    assert found.mode == "RGB"
    expected = np.asarray(image.convert("RGB"), int)
    assert np.abs(np.asarray(found, int) - expected).max() <= (8 if suffix == "jpg" else 1)


def test_transparency_is_ignored(tmp_path: Path) -> None:
    pixels = np.dstack([picture(), np.zeros((6, 9), np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), picture())


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparency_of_a_palette_is_ignored(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(picture()).quantize(8)
    image.save(tmp_path / f"a.{suffix}", transparency=int(np.asarray(image)[0, 0]))
    assert Image.open(tmp_path / f"a.{suffix}").has_transparency_data
    assert np.array_equal(np.asarray(read_image(tmp_path / f"a.{suffix}")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 65535, 32768]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    found = np.asarray(read_image(tmp_path / f"a.{suffix}"))
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 255, 128]
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(tmp_path: Path, mode: str) -> None:
    grey(mode).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif: Pillow mode '{mode}' has no defined range of values"):
        read_image(tmp_path / "a.tif")


def turned(file: Path, orientation: int) -> Image.Image:
    """Save a picture with an EXIF orientation; returns it as a viewer shows it."""
    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(file, exif=exif)
    shown = {
        1: lambda one: one,
        2: lambda one: one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda one: one.rotate(180),
        6: lambda one: one.rotate(-90, expand=True),
        8: lambda one: one.rotate(90, expand=True),
    }
    return shown[orientation](image)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    shown = turned(tmp_path / "a.png", orientation)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), np.asarray(shown))


def test_image_is_taken_as_stored_if_only_that_fits_its_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.png"
    shown = turned(file, 6)
    assert read_image(file, label_size=shown.size).size == shown.size
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        stored = [read_image(file, label_size=(9, 6)) for _ in range(2)]
    assert np.array_equal(np.asarray(stored[1]), picture())
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: its EXIF orientation is ignored, since its label has the size of the image as stored"
    ]
    assert read_image(file, label_size=(5, 5)).size == shown.size


def test_large_images_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    Image.new("1", (400, 300)).save(file)
    with pytest.raises(UserError) as caught:
        read_image(file, max_pixels=100_000)
    assert str(caught.value) == (
        f"{file}: 400×300 pixels are more than dataset.max_image_pixels=100000; increase it to read this image"
    )
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    assert read_image(file, max_pixels=120_000).size == (400, 300)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_damaged_images_are_named(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "a.png"
    if content is None:
        Image.fromarray(picture(100, 100)).save(file)
        content = file.read_bytes()[:5000]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: not a readable image"):
        read_image(file)
    with pytest.raises(UserError, match=r"absent\.png: not a readable image"):
        read_image(tmp_path / "absent.png")
