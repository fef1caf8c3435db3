"""Values in label images of every kind become class ids."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspexp.data.file_split import read_label
from pspexp.data.label_decoder import Decoded, LabelDecoder
from pspexp.data.label_values import check_tolerance, parse_label_values
from pspexp.errors import UserError

IDS = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
VOID = 255


def decoder(
    label_values: list[Any] | None, *, classes: int = 2, ignore: Any = (255,), tolerance: int = 0
) -> LabelDecoder:
    values, ignored = parse_label_values(label_values, ignore, len(label_values or []) or classes)
    check_tolerance(tolerance, values, ignored)
    return LabelDecoder(values, ignored, tolerance=tolerance, voc_colours=label_values is None)


def stored(image: Image.Image, suffix: str, **options: Any) -> Image.Image:
    """The image after a trip through a file of this format."""
    file = io.BytesIO()
    image.save(file, {"gif": "GIF", "png": "PNG", "tif": "TIFF", "jpg": "JPEG", "bmp": "BMP"}[suffix], **options)
    loaded = Image.open(file)
    loaded.load()
    return loaded


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette([channel for colour in colours for channel in colour])
    return image


BLACK_WHITE = Image.fromarray(IDS * np.uint8(255))


@pytest.mark.parametrize("label_values", [[0, 255], ["#000000", "#ffffff"], [[0, 0, 0], [255, 255, 255]]])
@pytest.mark.parametrize(
    "image",
    [
        BLACK_WHITE,
        BLACK_WHITE.convert("1"),
        BLACK_WHITE.convert("RGB"),
        BLACK_WHITE.convert("RGBA"),
        BLACK_WHITE.convert("LA"),
        stored(BLACK_WHITE, "gif"),
        stored(BLACK_WHITE.convert("1"), "gif"),
        stored(BLACK_WHITE.convert("1"), "tif"),
        stored(BLACK_WHITE.convert("1"), "bmp"),
        palette(IDS, (0, 0, 0), (255, 255, 255)),
    ],
    ids=["L", "1", "RGB", "RGBA", "LA", "gif", "1gif", "1tif", "1bmp", "P"],
)
def test_black_and_white_masks_of_every_kind(image: Image.Image, label_values: list[Any]) -> None:
    decoded = decoder(label_values).decode(image)
    assert decoded.ids.tolist() == IDS.tolist()
    assert decoded.ids.dtype == np.uint8
    assert not decoded.has_undeclared


@pytest.mark.parametrize("label_values", [None, [0, 1]])
@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(IDS),
        Image.fromarray(IDS).convert("RGB"),
        BLACK_WHITE.convert("1"),
        stored(BLACK_WHITE.convert("1"), "png"),
        palette(IDS, (0, 0, 0), (200, 10, 10)),
        palette(IDS, (0, 0, 0), (255, 255, 255)),
        Image.fromarray(IDS.astype(np.uint16)),
        Image.fromarray(IDS.astype(np.int32)),
    ],
    ids=["L", "RGB", "1", "1png", "P", "P-black-white", "I;16", "I"],
)
def test_masks_of_zero_and_one(image: Image.Image, label_values: list[Any] | None) -> None:
    assert decoder(label_values).decode(image).ids.tolist() == IDS.tolist()


def test_a_palette_of_greys_is_read_by_its_grey_where_those_are_declared() -> None:
    values = np.array([[0, 7, 9]], np.uint8)
    gif = palette(np.array([[0, 1, 2]], np.uint8), (0, 0, 0), (7, 7, 7), (9, 9, 9))
    assert decoder(None, classes=10).decode(gif).ids.tolist() == values.tolist()
    shown = palette(np.array([[0, 1, 2]], np.uint8), (0, 0, 0), (127, 127, 127), (255, 255, 255))
    assert decoder(None, classes=3).decode(shown).ids.tolist() == [[0, 1, 2]]


def test_colours_in_palette_files_are_palette_entries() -> None:
    image = palette(np.array([[0, 1, 2]], np.uint8), (0, 0, 0), (255, 0, 0), (0, 0, 255))
    assert decoder(["#0000ff", "#ff0000", "#000000"]).decode(image).ids.tolist() == [[2, 1, 0]]
    assert decoder([2, 1, 0]).decode(image).ids.tolist() == [[2, 1, 0]]


def test_several_values_of_a_class() -> None:
    image = Image.fromarray(np.array([[0, 3, 4, 9, 255]], np.uint8))
    assert decoder([0, [3, 4, 9, 3]]).decode(image).ids.tolist() == [[0, 1, 1, 1, VOID]]
    assert decoder([0, [[3, 4], 9]]).decode(image).ids.tolist() == [[0, 1, 1, 1, VOID]]
    rgb = Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decoder([[0, 0, 0], [[1, 2, 3], "#040506"]]).decode(rgb).ids.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_numbers_of_16_bits(dtype: type) -> None:
    image = Image.fromarray(np.array([[0, 1000, 65535]], dtype))
    assert decoder([0, 1000], ignore=[65535]).decode(image).ids.tolist() == [[0, 1, VOID]]
    found = decoder([0, 1]).decode(image)
    assert found.count(undeclared=True) == {1000: 1, 65535: 1}
    assert found.ids.tolist() == [[0, VOID, VOID]]


def test_numbers_beyond_16_bits_have_no_meaning() -> None:
    image = Image.fromarray(np.array([[0, 70000, -1]], np.int32))
    assert decoder([0, 1]).decode(image).count(undeclared=True) == {70000: 1, -1: 1}


@pytest.mark.parametrize("classes", [2, 21, 150, 255])
def test_every_number_of_classes(classes: int) -> None:
    values = np.arange(classes, dtype=np.uint8)[None]
    assert decoder(None, classes=classes).decode(Image.fromarray(values)).ids.tolist() == values.tolist()


def test_undeclared_values_are_counted() -> None:
    found = decoder([0, 255]).decode(Image.fromarray(np.array([[0, 7, 7, 255]], np.uint8)))
    assert (found.has_undeclared, found.count(undeclared=True)) == (True, {7: 2})
    assert found.count() == {0: 1, 7: 2, 255: 1}
    rgb = Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8))
    assert decoder([[0, 0, 0], [255, 0, 0]]).decode(rgb).count(undeclared=True) == {(1, 2, 3): 1}


def lossy(quality: int = 60, mode: str = "L") -> Image.Image:
    """A black and white mask, saved as JPEG."""
    mask = np.zeros((48, 48), np.uint8)
    mask[10:30, 12:40] = 255
    return stored(Image.fromarray(mask).convert(mode), "jpg", quality=quality)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("label_values", [[0, 255], ["#000000", "#ffffff"]])
def test_lossy_masks_are_snapped_within_the_tolerance(mode: str, label_values: list[Any]) -> None:
    image = lossy(mode=mode)
    strict = decoder(label_values).decode(image)
    assert strict.has_undeclared
    snapped = decoder(label_values, tolerance=120).decode(image)
    expected = np.zeros((48, 48), np.uint8)
    expected[10:30, 12:40] = 1
    assert not snapped.has_undeclared
    assert snapped.ids.tolist() == expected.tolist()
    assert snapped.snapped == sum(strict.count(undeclared=True).values())


def test_tolerance_is_per_channel() -> None:
    rgb = Image.fromarray(np.array([[[250, 4, 5], [250, 0, 6], [0, 0, 0]]], np.uint8))
    found: Decoded = decoder([[0, 0, 0], [255, 0, 0]], tolerance=5).decode(rgb)
    assert found.ids.tolist() == [[1, VOID, 0]]
    assert found.snapped == 1


@pytest.mark.parametrize(
    ("label_values", "ignore", "match"),
    [
        ([0, 0], [255], r"label_values: 0 means class 0 and class 1"),
        ([0, 7], [7], r"label_values: 7 means class 1 and ignored"),
        ([0, -1], [255], r"label_values\.1=-1: must be from 0 to 65535"),
        ([0, "red"], [255], r"label_values\.1=red: must be a number, \[r,g,b\], '#rrggbb'"),
        ([0, [1, 2, 300]], [255], r"label_values\.1=\[1, 2, 300\]: .*three parts"),
        ([0, True], [255], r"label_values\.1=true: must be a number"),
    ],
)
def test_wrong_values_are_refused(label_values: list[Any], ignore: list[Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        parse_label_values(label_values, ignore, 2)


def test_a_class_takes_255_from_the_default_of_the_ignored_values() -> None:
    assert parse_label_values([0, 255], [255], 2) == ([[0], [255]], [])


def test_a_tolerance_must_keep_values_apart() -> None:
    with pytest.raises(UserError, match=r"label_tolerance=128: label values 0 and 255 are only 255 apart.*at most 127"):
        check_tolerance(128, [[0], [255]], [])
    check_tolerance(127, [[0], [255]], [])


def test_number_of_values_must_be_that_of_the_classes() -> None:
    with pytest.raises(UserError, match=r"label_values: 3 entries for 2 classes"):
        parse_label_values([0, 1, 2], [255], 2)


def test_read_label_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken\.png: not a readable mask"):
        read_label(tmp_path / "broken.png", decoder([0, 1]))


def test_whole_numbers_in_float_images_are_read_and_fractions_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 300]], np.float32)).save(tmp_path / "whole.tif")
    assert read_label(tmp_path / "whole.tif", decoder([0, 300])).ids.tolist() == [[0, 1]]
    Image.fromarray(np.array([[0, 0.9]], np.float32)).save(tmp_path / "half.tif")
    with pytest.raises(UserError, match=r"half\.tif: holds fractions"):
        read_label(tmp_path / "half.tif", decoder([0, 1]))


def test_masks_with_16_bit_colours_are_refused(tmp_path: Path) -> None:
    png = bytes.fromhex("89504e470d0a1a0a")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.ones((2, 3, 3), ">u2").tobytes()
    rows = b"".join(b"\0" + pixels[18 * row : 18 * row + 18] for row in range(2))
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    content = png + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(content)
    with pytest.raises(UserError, match=r"deep\.png: has 16-bit colours; save it with 8 bits per channel"):
        read_label(tmp_path / "deep.png", decoder([0, 1]))


def test_the_whole_palette_decides_whether_greys_are_numbers() -> None:
    """Not the entries in use: files of one data set must be read alike."""
    greys = (0, 0, 0), (127, 127, 127), (255, 255, 255)
    read = decoder(None, classes=3)
    assert read.decode(palette(np.array([[0, 1, 2]], np.uint8), *greys)).ids.tolist() == [[0, 1, 2]]
    assert read.decode(palette(np.array([[0, 2, 2]], np.uint8), *greys)).ids.tolist() == [[0, 2, 2]]


def test_greys_that_are_also_colours_of_other_classes_are_refused() -> None:
    image = Image.new("RGB", (2, 2), (128, 128, 128))  # number 128, or VOC's class 7
    with pytest.raises(ValueError, match="numbers as well as VOC's colours"):
        decoder(None, classes=150).decode(image)
    assert decoder(None, classes=8).decode(image).ids.tolist() == [[7, 7], [7, 7]]


def test_a_mask_is_turned_as_its_orientation_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(IDS).save(tmp_path / "turned.png", exif=exif)
    assert read_label(tmp_path / "turned.png", decoder([0, 1])).ids.tolist() == IDS[::-1, ::-1].tolist()


def test_an_ignored_colour_beside_vocs_colours() -> None:
    read = decoder(None, ignore=[255, "#ffffff"])
    image = Image.fromarray(np.array([[[0, 0, 0], [128, 0, 0], [255, 255, 255]]], np.uint8))
    assert read.decode(image).ids.tolist() == [[0, 1, VOID]]
    assert read.decode(image.quantize(4)).ids.tolist() == [[0, 1, VOID]]
