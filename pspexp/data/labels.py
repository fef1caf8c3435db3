"""Label images: VOC's colours, and reading labels from any kind of PNG."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.data.images import MAX_PIXELS, load
from pspexp.errors import UserError

VOID = 255  # label of boundary and difficult pixels in VOC's files
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)

Colours = npt.NDArray[np.uint8]  # [..., 3] RGB
Labels = npt.NDArray[np.uint8]  # [H, W]


def _voc_colours() -> Colours:
    """The colour of each index: its bits 0, 3, 6 are the top bits of red, its bits 1, 4, 7 of green, 2, 5 of blue."""
    index = np.arange(256)
    channels = [sum((index >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


VOC_COLOURS = _voc_colours()  # uint8 [256, 3]; VOC devkit, VOClabelcolormap.m
VOC_COLOURS.setflags(write=False)

_INDEX_OF = np.full(512, -1, np.int16)  # by the top three bits of each channel; VOC uses no others
_INDEX_OF[(VOC_COLOURS >> 5).astype(np.intp) @ (64, 8, 1)] = np.arange(256)


def colours_to_index(rgb: Colours) -> npt.NDArray[np.int16]:
    """Index of each VOC colour.

    Args:
        rgb: uint8 ``[..., 3]``.

    Returns:
        int16 ``[...]``; -1 where the colour is not one of VOC's 256.
    """
    red, green, blue = (rgb[..., channel].astype(np.int16) for channel in range(3))
    index: npt.NDArray[np.int16] = _INDEX_OF[(red >> 5) << 6 | (green >> 5) << 3 | (blue >> 5)]
    index[(red | green | blue) & 31 != 0] = -1
    return index


def palette_colours(image: Image.Image) -> Colours:
    """The colours of a palette image, uint8 ``[n, 3]``."""
    return np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def count_colours(rgb: Colours) -> dict[tuple[int, int, int], int]:
    """The number of pixels of each colour among uint8 ``[n, 3]``, most frequent first."""
    packed = rgb.astype(np.int32) @ (65536, 256, 1)
    codes, counts = (found.tolist() for found in np.unique(packed, return_counts=True))
    pairs = sorted(zip(codes, counts, strict=True), key=lambda pair: -pair[1])
    return {(code >> 16, code >> 8 & 255, code & 255): count for code, count in pairs}


def open_label(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a label file as it is.

    Raises:
        UserError: The file cannot be read, or is not a palette, 8-bit grey or RGB image.
    """
    image = load(path, "label image", max_pixels)
    if image.mode == "RGBA":
        return image.convert("RGB")
    if image.mode not in ("P", "L", "RGB"):
        # 1-bit images are ambiguous (classes 0 and 1, or values 0 and 255); VOC has no 16-bit labels.
        raise UserError(
            f"{path}: a label must be a palette, 8-bit grey or RGB PNG, not Pillow mode '{image.mode}'; "
            "save it as 8-bit grey"
        )
    return image


def check_palette(path: Path, image: Image.Image) -> None:
    """Refuse a palette image with VOC's colours in another order: its indices and colours disagree.

    Some PNG optimisers sort palettes.

    Raises:
        UserError: Names an index and its colour.
    """
    colours = palette_colours(image)
    if np.array_equal(colours, VOC_COLOURS[: len(colours)]):
        return
    used = np.flatnonzero(image.histogram())
    used = used[used < len(colours)]
    by_colour = colours_to_index(colours[used])
    wrong = np.flatnonzero(by_colour != used)
    if len(wrong) and by_colour.min() >= 0:  # a palette of other colours says nothing about the indices
        first = wrong[0]
        raise UserError(
            f"{path}: palette and indices disagree: index {used[first]} has the colour of VOC's class "
            f"{by_colour[first]}; convert the labels with tools/convert_voc_label.py, which uses the colours"
        )
