"""Losses of single pixels: cross-entropy, its focal form, and its mean over hard pixels only."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pspexp.losses.base import SegmentationLoss
from pspexp.losses.class_weights import ClassWeights
from pspexp.utils.arguments import NonNegativeNumber, checked


class CrossEntropy(SegmentationLoss):
    """Cross-entropy, as ``torch.nn.functional.cross_entropy`` with ``reduction="mean"``.

    Args:
        num_classes: See `SegmentationLoss`, also for the arguments that are not listed here.
        label_smoothing: Share of the target that is spread over all classes (Szegedy et al., 2016, sec. 7).
    """

    pixels_are_independent = True

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights, main_weight, aux_weight)
        self.label_smoothing = label_smoothing

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `SegmentationLoss.pixel_losses`."""
        losses = F.cross_entropy(
            logits,
            target,
            weight=None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",  # the order of torch's own sum varies on CUDA
        )
        return losses, self.pixel_weights(target, logits.dtype)


class Focal(SegmentationLoss):
    """Softmax focal loss ``-(1 - p)^gamma log p`` of the label's probability p (Lin et al., 2017, eq. 4).

    The mean is over all pixels that count; modulating factors do not enter the divisor. The paper's alpha is
    ``class_weights``.

    Args:
        num_classes: See `SegmentationLoss`, also for the arguments that are not listed here.
        gamma: Exponent that down-weights easy pixels; 0 is cross-entropy.
    """

    pixels_are_independent = True

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights, main_weight, aux_weight)
        self.gamma = gamma

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `SegmentationLoss.pixel_losses`."""
        entropies = self.cross_entropies(logits, target)
        # 1 - p without cancellation near p = 1; kept above 0, where the power has no finite gradient for gamma < 1.
        miss = (-torch.expm1(-entropies)).clamp(min=torch.finfo(logits.dtype).tiny)
        weights = self.pixel_weights(target, logits.dtype)
        return weights * miss.pow(self.gamma) * entropies, weights


class OHEM(SegmentationLoss):
    """Cross-entropy over the hard pixels only (online hard example mining, Shrivastava et al., 2016).

    A pixel is hard when its label's probability is at most `threshold`, or when it is among the `min_kept`
    hardest of the batch (ties are all kept). Each output chooses its own pixels. The rule is that of
    mmsegmentation's ``OHEMPixelSampler``, with two differences: `min_kept` counts pixels of the batch, not of
    one image, and the mean is over the pixels that were kept, so the loss does not shrink with their number.

    Args:
        num_classes: See `SegmentationLoss`, also for the arguments that are not listed here.
        threshold: Probability up to which a pixel is hard; 1 keeps every pixel.
        min_kept: Minimum number of pixels of a batch to keep.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        threshold: Annotated[float, Field(gt=0, le=1)] = 0.7,
        min_kept: Annotated[int, Field(ge=0)] = 100_000,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights, main_weight, aux_weight)
        self.threshold = threshold
        self.min_kept = min_kept

    def pixel_losses(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See `SegmentationLoss.pixel_losses`."""
        entropies = self.cross_entropies(logits, target)
        weights = self.pixel_weights(target, logits.dtype)
        # Ignored pixels come last, however many are to be kept.
        hardness = entropies.detach().masked_fill(target == self.ignore_index, -1).flatten()
        limit: Tensor | float = -math.log(self.threshold)
        kept = min(self.min_kept, hardness.numel())
        if kept:
            limit = hardness.topk(kept, sorted=False).values.amin().clamp(max=limit)
        # "Not below" instead of "at least": a NaN is kept, so it shows in the loss.
        weights = weights * ~(hardness < limit).view_as(weights)
        return weights * entropies, weights
