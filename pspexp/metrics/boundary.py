"""Boundary IoU (Cheng et al., CVPR 2021)."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pspexp.metrics.base import Metric
from pspexp.metrics.confusion import ConfusionMatrix
from pspexp.metrics.report import ious
from pspexp.utils.arguments import checked

IGNORED = -1


class BoundaryIoU(Metric):
    """IoU of the pixels near the contours of prediction and ground truth: of each class, over all images.

    The boundary of a class is what d erosions of its mask with a 3×3 square remove: its pixels up to d pixels from
    another class, from ignored pixels or from outside the image, with d = ``dilation_ratio`` × the image's diagonal,
    rounded, at least 1. This is the definition of the official implementation. Ignored pixels are taken out of
    prediction and ground truth first.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels to ignore.
        dilation_ratio: Width of the boundary as a fraction of the image's diagonal.
    """

    @checked
    def __init__(
        self,
        num_classes: Annotated[int, Field(gt=0)],
        ignore_index: int = 255,
        dilation_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.02,
    ) -> None:
        self.num_classes, self.ignore_index, self.dilation_ratio = num_classes, ignore_index, dilation_ratio

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.state = torch.zeros(3, self.num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """See `Metric.update`."""
        ignored = target == self.ignore_index
        maps = torch.stack([prediction, target]).to(torch.int32).masked_fill_(ignored, IGNORED)
        distance = max(1, round(self.dilation_ratio * math.hypot(*maps.shape[-2:])))
        # One more class for the pixels off the boundaries: the matrix then counts all that is needed.
        rest = self.num_classes
        prediction, target = maps.masked_fill(~near_contour(maps, distance) & ~ignored, rest)
        self.add(ConfusionMatrix(rest + 1, IGNORED).count(prediction, target).totals[:, :rest])

    def compute(self) -> tuple[float, ...]:
        """The boundary IoU of each class; NaN if it has no boundary in ground truth or prediction."""
        return ious(*self.state.tolist())


def near_contour(labels: Tensor, distance: int) -> Tensor:
    """Whether the square of side ``2 * distance + 1`` around each pixel leaves the image or holds several labels.

    Args:
        labels: Integers ``[..., H, W]``, none below -1.
        distance: At least 1.
    """
    padded = F.pad(labels, [distance] * 4, value=IGNORED)
    # The largest label in each square, and the negative of the smallest. A maximum over k values in a row follows from
    # two over fewer, so that it takes log k operations.
    largest = torch.stack([padded, -padded])
    for dim in (-2, -1):
        side = 1
        while side <= 2 * distance:
            step = min(side, 2 * distance + 1 - side)
            length = largest.shape[dim] - step
            largest = torch.maximum(largest.narrow(dim, 0, length), largest.narrow(dim, step, length))
            side += step
    return largest[0] != -largest[1]
