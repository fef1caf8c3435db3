"""Pictures of evaluated images.

Drawn with Pillow: ten are drawn at each validation, and matplotlib takes many times as long.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.data.masks import MAX_CHARACTERS, MAX_LEGEND, WHITE, Colour, blend, colour_table, with_legend
from pspexp.utils.text import printable, shorten

GAP = 4  # pixels between the parts


def side_by_side(sample: EvaluatedSample, dataset: DatasetInfo) -> Image.Image:
    """Image, ground truth and prediction, the last two as class colours over the image, above a legend."""
    _, image, label, prediction = sample
    parts = (image, *(blend(image, ids, dataset) for ids in (label, prediction)))
    height, width = label.shape
    picture = Image.new("RGB", (3 * width + 2 * GAP, height), WHITE)
    for number, part in enumerate(parts):
        picture.paste(Image.fromarray(part), (number * (width + GAP), 0))
    return with_legend(picture, legend_entries(label, prediction, dataset))


def legend_entries(
    label: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], dataset: DatasetInfo
) -> list[tuple[str, Colour]]:
    """Name and colour of each class in ground truth or prediction, largest first, and of ignored pixels."""
    pixels = np.bincount(label.ravel(), minlength=256) + np.bincount(prediction.ravel(), minlength=256)
    names = dict(enumerate(dataset.class_names)) | {dataset.ignore_index: "ignored"}
    seen = sorted((index for index in names if pixels[index]), key=lambda index: -pixels[index])[:MAX_LEGEND]
    colours = colour_table(dataset)
    return [
        (printable(shorten(names[index], MAX_CHARACTERS)), (red, green, blue))
        for index in seen
        for red, green, blue in [colours[index].tolist()]
    ]


def picture_names(names: Sequence[str]) -> list[str]:
    """A file name for the picture of each image; different ones, although folders are left out."""
    found: list[str] = []
    for name in names:
        stem = name.replace("/", "_").replace("\\", "_")
        file, number = f"{stem}.png", 2
        while file in found:
            file, number = f"{stem}_{number}.png", number + 1
        found.append(file)
    return found
