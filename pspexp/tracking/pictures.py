"""Pictures of evaluated images.

Drawn with Pillow: ten are drawn at each validation, and matplotlib takes many times as long.
"""

from collections.abc import Sequence

from PIL import Image

from pspexp.data.dataset import DatasetInfo, EvaluatedSample
from pspexp.data.masks import WHITE, blend, legend_entries, with_legend

GAP = 4  # pixels between the parts


def side_by_side(sample: EvaluatedSample, dataset: DatasetInfo) -> Image.Image:
    """Image, ground truth and prediction, the last two as class colours over the image, above a legend."""
    _, image, label, prediction = sample
    parts = (image, *(blend(image, ids, dataset) for ids in (label, prediction)))
    height, width = label.shape
    picture = Image.new("RGB", (3 * width + 2 * GAP, height), WHITE)
    for number, part in enumerate(parts):
        picture.paste(Image.fromarray(part), (number * (width + GAP), 0))
    entries = legend_entries([label, prediction], dataset, ignored="ignored")
    return with_legend(picture, [(name, colour) for name, _, colour in entries])


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
