"""Reads images of any format and mode as 8-bit RGB, with their EXIF orientation applied."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pspexp.data.bands import Bands
from pspexp.errors import UserError, setting
from pspexp.utils.files import DAMAGED_FILE
from pspexp.utils.text import first_line

# Lower-case endings of the files that are images.
SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *(".avif", ".dib", ".j2k", ".jfif", ".jpe", ".jpx", ".pbm", ".pgm", ".pnm", ".tga"),
)
BROKEN_IMAGE = (*DAMAGED_FILE, Image.DecompressionBombError)  # what Pillow raises
MAX_PIXELS = 178_956_970  # Pillow's own default limit
ORIENTATION = 0x0112  # EXIF tag
BITS_PER_SAMPLE, PLANAR_CONFIGURATION = 258, 284  # TIFF tags
# Modes that Pillow converts to RGB correctly; an alpha channel is dropped.
CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")
# What turns an image into the one that a viewer shows, by EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Kind = TypeVar("Kind", Image.Image, Bands)

log = logging.getLogger(__name__)
_limit_lock = Lock()
_warned: set[str] = set()


def read_image(
    file: Path | BinaryIO,
    max_pixels: int = MAX_PIXELS,
    label_size: tuple[int, int] | None = None,
    name: str | None = None,
) -> Image.Image:
    """Read an image as RGB.

    Greyscale, palette, CMYK and 1-bit images are converted, transparency is ignored, 16-bit grey is divided by 257,
    of an animation the first frame is taken, and an EXIF orientation is applied.

    Args:
        file: The file.
        max_pixels: Largest number of pixels.
        label_size: Width and height of the image's label. If only the image as stored, without its orientation, has
            this size, it is taken as stored, with a warning.
        name: For messages; None: the file's.

    Raises:
        UserError: The file cannot be read, is too large or of a mode without a defined conversion.
    """
    name = name or str(file)
    return as_rgb(load(file, "image", max_pixels, name), name, label_size)


def as_rgb(image: Image.Image, name: str, label_size: tuple[int, int] | None = None) -> Image.Image:
    """An image as `read_image` returns it; ``name`` is for messages.

    Raises:
        UserError: The mode has no defined conversion, or the data are damaged.
    """
    try:
        rgb, turn = to_rgb(image, name), TURNS.get(orientation(image))
    except BROKEN_IMAGE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not a readable image ({first_line(error)}); replace or remove it") from error
    return turned(rgb, turn, name, label_size)


def turned(image: Kind, turn: Image.Transpose | None, name: str, label_size: tuple[int, int] | None) -> Kind:
    """An image turned as viewers show it, or as stored if only that has the size of its label; see `read_image`."""
    shown = image if turn is None else image.transpose(turn)
    if label_size is not None and image.size == label_size != shown.size:
        if name not in _warned:
            log.warning(
                "%s: its EXIF orientation is ignored, since its label has the size of the image as stored", name
            )
            _warned.add(name)
        return image
    return shown


def load(file: Path | BinaryIO, what: str, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Read an image file as it is; ``what`` it is and its ``name`` are for messages.

    Raises:
        UserError: The file cannot be read, or has more than ``max_pixels`` pixels.
    """
    try:
        with any_size():
            image = Image.open(file)
        with image:
            check_size(image.size, name or str(file), max_pixels)
            check_depth(image, name or str(file), what)
            image.load()
            return image
    except BROKEN_IMAGE as error:
        if isinstance(error, UserError):
            raise
        unknown = "unknown format" if isinstance(error, UnidentifiedImageError) else None
        reason = unknown or getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{name or file}: not a readable {what} ({reason}); replace or remove it") from error


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise UserError if an image of this width and height has no pixels, or more than ``max_pixels``."""
    if not all(size):
        raise UserError(f"{name}: {size[0]}×{size[1]} pixels; an image must have some")
    if size[0] * size[1] > max_pixels:
        raise UserError(
            f"{name}: {size[0]}×{size[1]} pixels are more than "
            f"{setting('dataset.max_image_pixels', max_pixels)}; increase it to read this image"
        )


def check_depth(image: Image.Image, name: str, what: str) -> None:
    """Raise UserError for an image with 16-bit colours that Pillow would not read correctly.

    Of those it keeps the high bytes, which hold no class number, and of separate planes it reads noise.

    Args:
        image: Opened, but not loaded.
        name: For the message.
        what: ``image`` or ``mask``.
    """
    tags: Any = getattr(image, "tag_v2", {})
    tiles: Any = getattr(image, "tile", ())
    bits = tags.get(BITS_PER_SAMPLE, (8,))
    is_deep = len(image.getbands()) > 2 and (
        max(bits if isinstance(bits, tuple) else (bits,)) > 8 or any(";16" in str(tile[3]) for tile in tiles)
    )
    if is_deep and (what == "mask" or tags.get(PLANAR_CONFIGURATION) == 2):
        kind = "16-bit colours" if what == "mask" else "16-bit colours in separate planes"
        raise UserError(f"{name}: has {kind}; save it with 8 bits per channel, or a mask with a single channel")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    with suppress(*BROKEN_IMAGE):
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """An image of any mode as 8-bit RGB; ``name`` is for messages.

    Raises:
        UserError: The mode has no defined conversion.
    """
    return image if image.mode == "RGB" else to_8_bits(image, name).convert("RGB")


def to_8_bits(image: Image.Image, name: str) -> Image.Image:
    """An image in a mode of 8 bits per channel; ``name`` is for messages.

    Raises:
        UserError: The mode has no defined conversion.
    """
    # Releases of Pillow before 11 read 16-bit PNGs as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray(from_16_bits(np.asarray(image)))
    if image.mode not in CONVERTIBLE:
        raise UserError(
            f"{name}: Pillow mode '{image.mode}' has no defined range of values; convert the image to 8 or 16 bits"
        )
    return image


def from_16_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """16-bit values divided by 257, so that 65535 becomes 255, and rounded."""
    return ((values.astype(np.uint32) + 128) // 257).clip(0, 255).astype(np.uint8)


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size: its own limit cannot be set per file."""
    pillow: Any = Image
    with _limit_lock:
        before, pillow.MAX_IMAGE_PIXELS = pillow.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            pillow.MAX_IMAGE_PIXELS = before
