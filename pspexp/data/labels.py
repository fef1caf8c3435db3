"""Label images: the VOC colours, and reading a label whatever kind of PNG it is."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.errors import UserError

VOID = 255  # boundary and difficult pixels in VOC label files
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
# what Pillow raises for a file that it cannot read
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

Colours = npt.NDArray[np.uint8]  # [..., 3] RGB
Labels = npt.NDArray[np.uint8]  # [H, W]


def _voc_colours() -> Colours:
    """The colour of each index: its bits 0, 3, 6 make red from the top bit down, 1, 4, 7 green, 2, 5 blue."""
    index = np.arange(256)
    channels = [sum((index >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


VOC_COLOURS = _voc_colours()  # uint8 [256, 3]; VOC devkit, VOClabelcolormap.m
VOC_COLOURS.setflags(write=False)

_INDEX_OF = np.full(512, -1, np.int16)  # by the three top bits of each channel: VOC uses no others
_INDEX_OF[(VOC_COLOURS >> 5).astype(np.intp) @ (64, 8, 1)] = np.arange(256)


def colours_to_index(rgb: Colours) -> npt.NDArray[np.int16]:
    """Index of each VOC colour.

    Args:
        rgb: uint8 ``[..., 3]``.

    Returns:
        int16 ``[...]``; -1 where the colour is none of the 256 VOC colours.
    """
    red, green, blue = (rgb[..., channel].astype(np.int16) for channel in range(3))
    index: npt.NDArray[np.int16] = _INDEX_OF[(red >> 5) << 6 | (green >> 5) << 3 | (blue >> 5)]
    index[(red | green | blue) & 31 != 0] = -1
    return index


def palette_colours(image: Image.Image) -> Colours:
    """uint8 ``[n, 3]``: the colours of a palette image, as many as it has."""
    return np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def count_colours(rgb: Colours) -> dict[tuple[int, int, int], int]:
    """How many of the pixels ``[n, 3]`` have each colour, most frequent first."""
    packed = rgb.astype(np.int32) @ (65536, 256, 1)
    codes, counts = (found.tolist() for found in np.unique(packed, return_counts=True))
    pairs = sorted(zip(codes, counts, strict=True), key=lambda pair: -pair[1])
    return {(code >> 16, code >> 8 & 255, code & 255): count for code, count in pairs}


def read_image(path: Path) -> Image.Image:
    """Read a photograph as RGB; raises UserError naming the file if it cannot be read."""
    image = _load(path, "image")
    return image if image.mode == "RGB" else image.convert("RGB")


def open_label(path: Path) -> Image.Image:
    """Load a label file; raises UserError unless it is a palette, 8-bit grey or colour image."""
    image = _load(path, "label image")
    if image.mode == "RGBA":  # colours with an alpha channel are still colours
        return image.convert("RGB")
    if image.mode not in ("P", "L", "RGB"):
        # a 1-bit image could mean the classes 0 and 1 or the values 0 and 255; 16 bits hold no VOC label
        raise UserError(
            f"{path}: a label must be a palette, 8-bit grey or RGB PNG, not Pillow mode '{image.mode}'; "
            "save it as 8-bit grey"
        )
    return image


def read_label(path: Path) -> Labels:
    """Read a label of any kind as indices.

    Palette and grey images hold the indices themselves, RGB images hold VOC colours. A palette image
    whose colours are VOC's in another order (some PNG optimisers sort palettes) is refused: there, index and
    colour disagree.

    Returns:
        uint8 ``[H, W]``, values as in the file (255 = void).

    Raises:
        UserError: the file cannot be read or its meaning is not clear; names the file.
    """
    image = open_label(path)
    pixels = np.asarray(image)
    if image.mode == "RGB":
        return _colours_to_labels(path, pixels)
    if image.mode == "P":
        _check_palette(path, image, pixels)
    return pixels


def _load(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            image.load()
            return image
    except BROKEN_IMAGE as error:
        raise UserError(f"{path}: not a readable {what} ({error})") from error


def _colours_to_labels(path: Path, rgb: Colours) -> Labels:
    index = colours_to_index(rgb)
    if index.min() < 0:
        unknown = count_colours(rgb[index < 0])
        shown = ", ".join(f"{colour} ({count} pixels)" for colour, count in list(unknown.items())[:5])
        raise UserError(
            f"{path}: {len(unknown)} colour(s) that VOC does not have: {shown}; "
            "tools/convert_voc_label.py lists them for the whole folder"
        )
    return index.astype(np.uint8)


def _check_palette(path: Path, image: Image.Image, pixels: Labels) -> None:
    colours = palette_colours(image)
    if np.array_equal(colours, VOC_COLOURS[: len(colours)]):
        return
    used = np.flatnonzero(image.histogram())
    used = used[used < len(colours)]
    by_colour = colours_to_index(colours[used])
    wrong = np.flatnonzero(by_colour != used)
    if len(wrong) and by_colour.min() >= 0:  # a palette of other colours is just another taste
        first = wrong[0]
        raise UserError(
            f"{path}: palette and VOC colours disagree: index {used[first]} has the colour of class "
            f"{by_colour[first]}; write index PNGs with tools/convert_voc_label.py (it goes by colour)"
        )
