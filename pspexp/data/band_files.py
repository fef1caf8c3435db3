"""Reads images of a given number of bands: RGB as `pspexp.data.images` does, others band by band."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pspexp.data.bands import AnyImage, Bands, Pixels
from pspexp.data.images import (
    BROKEN_IMAGE,
    MAX_PIXELS,
    TURNS,
    check_size,
    from_16_bits,
    load,
    orientation,
    read_image,
    to_8_bits,
    turned,
)
from pspexp.errors import UserError, setting
from pspexp.utils.text import count, first_line, one_line

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NO_TIFFFILE = "this kind of TIFF file needs tifffile; pip install 'pspexp[tiff]'"
ORIENTATION, SAMPLES_PER_PIXEL = 0x0112, 0x0115  # TIFF tags


class TiffHeader(NamedTuple):
    """What a TIFF file says of its image: size as stored, EXIF orientation, number of bands."""

    width: int
    height: int
    orientation: int
    bands: int


def read_bands(
    file: Path,
    num_bands: int,
    max_pixels: int = MAX_PIXELS,
    label_size: tuple[int, int] | None = None,
    name: str | None = None,
) -> AnyImage:
    """Read an image with this number of bands: three as `read_image`, others as they are stored.

    One band is read from greyscale files, and several from the channels of the file, transparency and black (CMYK)
    included; TIFF files of several bands are read by tifffile. 16-bit values are divided by 257.

    Args:
        file: The file.
        num_bands: The number of bands that it must have, except if that is three.
        max_pixels, label_size, name: See `read_image`.

    Raises:
        UserError: The file cannot be read, is too large, or has another number of bands.
    """
    name = name or str(file)
    if num_bands in (1, 3) or not is_tiff(file):
        try:
            if num_bands == 3:
                return read_image(file, max_pixels, label_size, name)
            return as_bands(load(file, "image", max_pixels, name), num_bands, name, label_size)
        except UserError:
            if header := tiff_header(file):  # Pillow reads few kinds of TIFF files
                check_bands(header.bands, num_bands, name)
            raise
    pixels, turn = read_tiff(file, max_pixels, name)
    check_bands(pixels.shape[2], num_bands, name)
    return turned(Bands.from_array(pixels), turn, name, label_size)


def as_bands(image: Image.Image, num_bands: int, name: str, label_size: tuple[int, int] | None = None) -> Bands:
    """An image as `read_bands` returns it, for another number of bands than three; ``name`` is for messages.

    Raises:
        UserError: It has another number of bands, the mode has no defined range, or the data are damaged.
    """
    try:
        image, turn = to_8_bits(image, name), TURNS.get(orientation(image))
        if image.mode in ("P", "PA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        bands = [band.convert("L") for band in image.split()]
        found: int = getattr(image, "tag_v2", {}).get(SAMPLES_PER_PIXEL, len(bands))  # Pillow reads 1 of 2 as "L"
    except BROKEN_IMAGE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not a readable image ({first_line(error)}); replace or remove it") from error
    check_bands(max(found, len(bands)), num_bands, name)
    return turned(Bands(bands), turn, name, label_size)


def check_bands(found: int, num_bands: int, name: str) -> None:
    """Raise UserError unless an image has this number of bands."""
    if found != num_bands:
        raise UserError(
            f"{name}: {count(found, 'band')}, but {setting('dataset.mean')} has {count(num_bands, 'value')}; give "
            f"{setting('dataset.mean')} and {setting('dataset.std')} one value per band, or convert the image"
        )


def is_tiff(file: Path) -> bool:
    """Whether a file begins as TIFF files do; False if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(4) in TIFF_SIGNATURES
    except OSError:
        return False


def read_tiff(file: Path, max_pixels: int, name: str) -> tuple[Pixels, Image.Transpose | None]:
    """The pixels of a TIFF file, uint8 ``[H, W, B]``, and what turns them into the image that viewers show.

    The bands are those of the first page, or if that has a single one, the first pages of equal size.

    Raises:
        UserError: It cannot be read, is too large or is not an image of 8-bit or 16-bit bands.
    """
    tifffile = import_tifffile(name)
    try:
        with tifffile.TiffFile(file) as tiff:
            source, axes, bands = first_image(tiff, name)
            header = header_of(tiff, source, axes, bands)
            check_size((header.width, header.height), name, max_pixels)
            if (kind := np.dtype(source.dtype).name) not in ("uint8", "uint16"):
                raise UserError(f"{name}: {kind} values have no defined range; convert the file to uint8 or uint16")
            values = source.asarray()
    except BROKEN_IMAGE as error:
        if isinstance(error, UserError):
            raise
        fix = (
            "; pip install imagecodecs, or save it uncompressed"
            if "imagecodecs" in str(error)
            else "; replace or remove it"
        )
        raise UserError(f"{name}: not a readable image ({one_line(error)}){fix}") from error
    values = values[..., None] if bands is None else np.moveaxis(values, axes.index(bands), -1)
    return values if kind == "uint8" else from_16_bits(values), TURNS.get(header.orientation)


def tiff_header(file: Path) -> TiffHeader | None:
    """The header of a TIFF file; None if it is none, is damaged, or tifffile is not installed."""
    if not is_tiff(file) or find_spec("tifffile") is None:
        return None
    with suppress(Exception), import_tifffile(str(file)).TiffFile(file) as tiff:
        return header_of(tiff, *first_image(tiff, str(file)))
    return None


def header_of(tiff: Any, source: Any, axes: str, bands: str | None) -> TiffHeader:
    """The header of a file that tifffile has opened, and what `first_image` found in it."""
    height, width = (int(source.shape[axes.index(axis)]) for axis in "YX")
    tag = tiff.pages[0].tags.get(ORIENTATION)
    return TiffHeader(width, height, int(tag.value) if tag else 1, source.shape[axes.index(bands)] if bands else 1)


def first_image(tiff: Any, name: str) -> tuple[Any, str, str | None]:
    """The page or series of tifffile with the bands, its axes, and the one of them that counts bands, if any.

    Raises:
        UserError: It has further axes, such as time or depth.
    """
    page = tiff.pages[0]
    source = page if page.samplesperpixel > 1 else tiff.series[0]
    axes: str = source.axes
    others = [axis for axis in axes if axis not in "YX"]
    if len(others) > 1 or len(axes) - len(others) != 2:
        raise UserError(
            f"{name}: its axes are {axes}; must be height (Y), width (X) and bands; save one image per file"
        )
    return source, axes, others[0] if others else None


def import_tifffile(name: str) -> Any:
    """The module tifffile.

    Raises:
        UserError: It is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UserError(f"{name}: {NO_TIFFFILE}") from error
    return tifffile
