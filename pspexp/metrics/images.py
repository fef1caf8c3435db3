"""The metrics of single images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pspexp.metrics.report import ious, mean, ratio


@dataclass(frozen=True)
class ImageScores:
    """Metrics of one image, as fractions from 0 to 1; NaN where undefined.

    Attributes:
        name: The image.
        iou: IoU of each class; NaN if in neither the image's ground truth nor its prediction.
        mean_iou: Mean of `iou` over the classes in either; NaN if every pixel is ignored.
        overall_acc: Correct pixels / all pixels.
        pixels: Number of pixels that are not ignored.
    """

    name: str
    iou: tuple[float, ...]
    mean_iou: float
    overall_acc: float
    pixels: int


def image_scores(name: str, hits: Sequence[int], truth: Sequence[int], predicted: Sequence[int]) -> ImageScores:
    """The metrics of an image from the numbers of correct, ground-truth and predicted pixels of each class."""
    iou, pixels = ious(hits, truth, predicted), sum(truth)
    return ImageScores(name, iou, mean(iou), ratio(sum(hits), pixels), pixels)


def worst_first(images: Mapping[int, ImageScores]) -> list[int]:
    """The indices of images by mean IoU, then by index; images without a mean IoU last."""

    def key(index: int) -> tuple[float, int]:
        mean_iou = images[index].mean_iou
        return (math.inf if math.isnan(mean_iou) else mean_iou), index

    return sorted(images, key=key)
