"""Cross-entropy with more weight near the boundaries of labels."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pspexp.losses.class_weights import ClassWeights
from pspexp.losses.pixel import CrossEntropy
from pspexp.utils.arguments import NonNegativeNumber, checked


class Boundary(CrossEntropy):
    """Cross-entropy in which a pixel counts ``1 + w exp(-d² / (2 sigma²))`` times (after Ronneberger et al., 2015).

    d is the distance to the nearest labelled pixel of another class, in pixels, as the larger one of the horizontal
    and the vertical distance. Beyond 3 sigma, the exponential counts as 0. Ignored pixels are no class: the pixels on
    either side of an ignored line are near a boundary, those at the edge of an ignored area need not be.

    The paper adds the distances to the nearest two cells instead.

    Args:
        num_classes: See `SegmentationLoss`, also for the arguments that are not listed here.
        boundary_weight: Additional weight w at a boundary.
        sigma: How far from a boundary the weight falls off, in pixels.
        label_smoothing: See `CrossEntropy`.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        boundary_weight: NonNegativeNumber = 10.0,
        sigma: Annotated[float, Field(gt=0, le=100)] = 5.0,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(
            num_classes,
            ignore_index=ignore_index,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
            main_weight=main_weight,
            aux_weight=aux_weight,
        )
        self.boundary_weight, self.sigma = boundary_weight, sigma

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `SegmentationLoss.pixel_losses`."""
        losses, weights = super().pixel_losses(logits, target)
        factors = self.factors(target).to(logits.dtype)
        return losses * factors, weights * factors

    def factors(self, target: Tensor) -> Tensor:
        """How often each labelled pixel counts, float32 ``[N, H, W]``."""
        ignored = target == self.ignore_index
        # Of a growing square around each pixel, the largest label, and the smallest one as the largest of C - label.
        labels = torch.stack([target, self.num_classes - target], dim=1).float()
        largest = labels.masked_fill(ignored[:, None], -1)
        factors = torch.ones_like(largest[:, 0])
        for distance in range(1, math.ceil(3 * self.sigma) + 1):
            largest = F.max_pool2d(largest, 3, stride=1, padding=1)
            is_mixed = largest.sum(1) > self.num_classes  # it has two classes
            factor = 1 + self.boundary_weight * math.exp(-(distance**2) / (2 * self.sigma**2))
            factors = torch.where(is_mixed & (factors == 1), factor, factors)
        return factors
