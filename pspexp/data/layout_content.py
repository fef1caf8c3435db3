"""Whether files look like images and their masks."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from pspexp.data.images import BROKEN_IMAGE, any_size

SIDE, LARGEST = 256, 50_000_000  # pixels that are counted along each axis; in an image that is decoded
FLAT = 24  # at most so many colours cover most of a mask
LABEL_MODES = ("1", "P", "L", "I", "I;16")
LOSSY, LOSSLESS = (".jpg", ".jpeg"), (".png", ".gif", ".bmp")


def looks_like_masks(images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Whether files look like images and their masks.

    Masks have few colours. Where images have few, too, or files cannot be read, the mode decides, then the format.
    """
    photos = [look for path in images if (look := _look(path))]
    labels = [look for path in masks if (look := _look(path))]
    if photos and labels:
        colours, flat = median(number for _, number in photos), median(number for _, number in labels)
        if flat > FLAT:
            return False
        if colours > 2 * flat or (photos[0][0] not in LABEL_MODES and labels[0][0] in LABEL_MODES):
            return True
    return images[0].suffix.lower() in LOSSY and masks[0].suffix.lower() in LOSSLESS


def _look(path: Path) -> tuple[str, int] | None:
    """An image's mode, and the number of colours that cover 90 % of its pixels; None if it cannot be read."""
    try:
        with any_size():
            image = Image.open(path)
        with image:
            if image.width * image.height > LARGEST:
                return None
            pixels = np.asarray(image)
    except BROKEN_IMAGE:
        return None
    pixels = pixels[:: -(-pixels.shape[0] // SIDE), :: -(-pixels.shape[1] // SIDE)]
    colours = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    counts = np.sort(np.unique(colours, axis=0, return_counts=True)[1])[::-1]
    return image.mode, int(np.searchsorted(counts.cumsum(), 0.9 * counts.sum())) + 1
