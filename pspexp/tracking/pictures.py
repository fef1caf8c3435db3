"""Pictures of evaluated images.

Drawn with Pillow: a dozen are drawn at each validation, and matplotlib takes many times as long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.data.masks import LINE, WHITE, blend, legend_entries, title, with_legend
from pspexp.utils.files import atomic_write

GAP = 4  # pixels between the parts
MIN_SIDE = 240  # pixels: smaller images are enlarged
MIN_COLUMN = 100  # pixels: room for the titles


def side_by_side(sample: EvaluatedSample, dataset: DatasetInfo, split: str) -> Image.Image:
    """Image, ground truth and prediction, the last two as class colours over the image, above a legend."""
    name, image, label, prediction = enlarged(sample)
    height, width = label.shape
    column = max(width, MIN_COLUMN)
    picture = Image.new("RGB", (3 * column + 2 * GAP, LINE + height), WHITE)
    titles = (f"{split}: {name}", "ground truth", "prediction")
    parts = (image, blend(image, label, dataset), blend(image, prediction, dataset))
    for number, (text, part) in enumerate(zip(titles, parts, strict=True)):
        left = number * (column + GAP)
        picture.paste(title(text, column), (left, 0))
        picture.paste(Image.fromarray(part), (left + (column - width) // 2, LINE))
    entries = legend_entries([label, prediction], dataset, ignored="ignored")
    return with_legend(picture, [(name, colour) for name, _, colour in entries])


def save_picture(picture: Image.Image, file: Path, **options: Any) -> None:
    """Write a PNG, see `atomic_write`; ``options`` are Pillow's."""
    with atomic_write(file) as stream:
        picture.save(stream, format="PNG", compress_level=1, **options)  # higher levels take longer than the drawing


def enlarged(sample: EvaluatedSample) -> EvaluatedSample:
    """A sample with its pixels repeated, so that its longer side has at least `MIN_SIDE`."""
    factor = -(-MIN_SIDE // max(sample.label.shape))
    if factor == 1:
        return sample
    return EvaluatedSample(sample.name, *(np.repeat(np.repeat(one, factor, 0), factor, 1) for one in sample[1:]))


def picture_names(names: Sequence[str]) -> list[str]:
    """File names for the pictures of images, unique even where only the folders of the images differ."""
    found: list[str] = []
    for name in names:
        stem = name.replace("/", "_").replace("\\", "_")
        file, number = f"{stem}.png", 2
        while file in found:
            file, number = f"{stem}_{number}.png", number + 1
        found.append(file)
    return found
