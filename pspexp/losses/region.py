"""Losses of regions: functions of how the probabilities of a class and its pixels overlap in the whole batch.

The batch is a micro-batch of one process, or, in an evaluation, an image. Its loss counts as often as it has labelled
pixels: these losses are not linear in the pixels, so a step over several micro-batches or processes takes the mean of
their losses, not the loss of all their pixels together.

The loss is the mean over the classes that have labelled pixels in the batch, weighted by the class weights.
"""

import torch
from torch import Tensor

from pspexp.losses.base import LossSum, SegmentationLoss
from pspexp.losses.class_weights import ClassWeights
from pspexp.utils.arguments import NonNegativeNumber, checked


class RegionLoss(SegmentationLoss):
    """Mean over the classes in a batch of `class_losses`."""

    def output_sum(self, logits: Tensor, target: Tensor) -> LossSum:
        """See `SegmentationLoss.output_sum`; the weight is the number of labelled pixels."""
        assert logits.shape[1] == self.num_classes, f"{logits.shape[1]} channels for {self.num_classes} classes"
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = (target != self.ignore_index).sum().to(logits.dtype)
        return LossSum(self.batch_loss(logits.softmax(1), target) * weight, weight)

    def batch_loss(self, probabilities: Tensor, target: Tensor) -> Tensor:
        """The loss of probabilities ``[N, C, H, W]``, a scalar."""
        masks = self.class_masks(target)
        present = masks.flatten(2).any(2).any(0)
        weights = present.to(probabilities.dtype)
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(weights)
        losses = self.class_losses(probabilities, masks, target != self.ignore_index)
        total = weights.sum()
        return (losses * weights).sum() / torch.where(total > 0, total, 1)

    def class_masks(self, target: Tensor) -> Tensor:
        """Where each class is: bool ``[N, C, H, W]``.

        Raises:
            IndexError: A label is neither a class id nor ``ignore_index``, on the CPU.
        """
        ignored = target == self.ignore_index
        identity = torch.eye(self.num_classes, dtype=torch.bool, device=target.device)
        rows = identity.index_select(0, target.masked_fill(ignored, 0).flatten())  # unlike [], it takes no negative ids
        return rows.view(*target.shape, -1).movedim(-1, 1) & ~ignored[:, None]

    def class_losses(self, probabilities: Tensor, masks: Tensor, labelled: Tensor) -> Tensor:
        """The loss of each class, ``[C]``; finite for classes that are not in the batch.

        Args:
            probabilities: ``[N, C, H, W]``.
            masks: Where each class is, bool ``[N, C, H, W]``.
            labelled: Which pixels count, bool ``[N, H, W]``.
        """
        raise NotImplementedError(type(self).__name__)


def overlaps(probabilities: Tensor, masks: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, false positives and false negatives of each class, all ``[C]``, as sums of probabilities."""
    pixels = (0, 2, 3)
    predicted = probabilities.masked_fill(~labelled[:, None], 0).sum(pixels)
    true_positives = probabilities.masked_fill(~masks, 0).sum(pixels)
    return true_positives, predicted - true_positives, masks.sum(pixels) - true_positives


class Tversky(RegionLoss):
    """Tversky loss ``1 - (TP + s) / (TP + alpha FP + beta FN + s)`` of each class (Salehi et al., 2017, eq. 3 and 4).

    TP, FP and FN are sums of probabilities. With ``alpha = beta = 0.5`` it is the Dice loss, with 1 the soft Jaccard
    loss.

    Args:
        num_classes: See `RegionLoss`, also for the arguments that are not listed here.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        smooth: Number of pixels s that is added to numerator and denominator.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        alpha: NonNegativeNumber = 0.3,
        beta: NonNegativeNumber = 0.7,
        smooth: NonNegativeNumber = 1.0,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights, main_weight, aux_weight)
        self.alpha, self.beta, self.smooth = alpha, beta, smooth

    def class_losses(self, probabilities: Tensor, masks: Tensor, labelled: Tensor) -> Tensor:
        """See `RegionLoss.class_losses`."""
        hits, false_positives, misses = overlaps(probabilities, masks, labelled)
        missed = self.alpha * false_positives + self.beta * misses
        # The same as 1 - (hits + s) / (hits + missed + s), without cancellation near 0.
        return missed / (hits + missed + self.smooth).clamp(min=torch.finfo(hits.dtype).tiny)


class Dice(Tversky):
    """Soft Dice loss ``1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s)`` of each class.

    p is the probability of the class, g is 1 where it is and 0 elsewhere. The denominator has no squares (Sudre et
    al., 2017; Milletari et al., 2016, square p and g).

    Args:
        num_classes: See `RegionLoss`, also for the arguments that are not listed here.
        smooth: Number of pixels s that is added to numerator and denominator.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        smooth: NonNegativeNumber = 1.0,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(
            num_classes,
            ignore_index=ignore_index,
            class_weights=class_weights,
            alpha=0.5,
            beta=0.5,
            smooth=smooth / 2,
            main_weight=main_weight,
            aux_weight=aux_weight,
        )


class Lovasz(RegionLoss):
    """Lovász-Softmax, a convex surrogate of ``1 - IoU`` of each class (Berman et al., 2018, eq. 8 and 9).

    It equals ``1 - mean IoU`` where all probabilities are 0 or 1. Each class is sorted by its errors, which takes most
    of the time.

    Args:
        num_classes: See `RegionLoss`, also for the arguments that are not listed here.
        per_image: Whether each image has a loss of its own, which counts as often as it has labelled pixels.
    """

    @checked
    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        per_image: bool = False,
        main_weight: NonNegativeNumber = 0.6,
        aux_weight: NonNegativeNumber = 0.4,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights, main_weight, aux_weight)
        self.per_image = per_image

    def output_sum(self, logits: Tensor, target: Tensor) -> LossSum:
        """See `RegionLoss.output_sum`."""
        if not self.per_image:
            return super().output_sum(logits, target)
        images = range(len(target))
        sums = [super(Lovasz, self).output_sum(logits[i : i + 1], target[i : i + 1]) for i in images]
        return LossSum(*(torch.stack(parts).sum() for parts in zip(*sums, strict=True)))

    def class_losses(self, probabilities: Tensor, masks: Tensor, labelled: Tensor) -> Tensor:
        """See `RegionLoss.class_losses`."""
        losses = []
        for index in range(self.num_classes):
            mask = masks[:, index]
            if mask.device.type == "cpu" and not mask.any():  # elsewhere, asking would wait for the device
                losses.append(probabilities[:, index].sum() * 0)
                continue
            errors = torch.where(mask, 1 - probabilities[:, index], probabilities[:, index]).masked_fill(~labelled, 0)
            losses.append((errors * jaccard_weights(errors.detach(), mask, labelled)).sum())
        return torch.stack(losses)


def jaccard_weights(errors: Tensor, mask: Tensor, labelled: Tensor) -> Tensor:
    """The gradient of the Lovász extension of the Jaccard loss of a class; all tensors have one value per pixel.

    With the pixels in descending order of error, the weight of one is what it adds to the Jaccard loss of those before
    it: ``1 / union`` for a pixel of the class, else ``intersection / (union (union - 1))``. The paper's algorithm 1
    subtracts consecutive Jaccard losses instead, which leaves few correct digits in float32.
    """
    # Ignored pixels come last, where they change no other weight.
    order = errors.masked_fill(~labelled, -1).flatten().argsort(descending=True)
    belongs = mask.flatten()[order]
    total = mask.sum()
    # Integers: exact, and the same in each run.
    left, union = total - belongs.cumsum(0), total + (~belongs).cumsum(0)
    before = (union - 1).clamp(min=1)
    increase = torch.where(belongs, 1, left.to(errors.dtype) / before) / union
    return torch.empty_like(increase).scatter_(0, order, increase).view_as(errors)
