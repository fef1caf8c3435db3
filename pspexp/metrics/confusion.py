"""The confusion matrix, from which most metrics follow."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pspexp.metrics.report import Report, ious, mean, ratio

LANES = 64
"""Copies of each counter, a power of two. Most pixels fall into few cells of the matrix; with a single counter per
cell, the threads of an accelerator would contend for it."""


class ConfusionMatrix:
    """Number of pixels by true and predicted class, int64, on the device of the predictions.

    Args:
        num_classes: Number of classes; their ids are 0 to ``num_classes - 1``.
        ignore_index: Label of the pixels to ignore.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        assert num_classes >= 1, num_classes
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # The matrix row by row, then ignored pixels, then pixels with an invalid id.
        self.counts = torch.zeros(num_classes**2 + 2, dtype=torch.int64)

    @property
    def matrix(self) -> Tensor:
        """int64 ``[C, C]``, rows = ground truth, columns = prediction."""
        return self.counts[:-2].view(self.num_classes, self.num_classes)

    @property
    def totals(self) -> Tensor:
        """int64 ``[3, C]``: the correct, ground-truth and predicted pixels of each class."""
        return torch.stack([self.matrix.diagonal(), self.matrix.sum(1), self.matrix.sum(0)])

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, without host–device synchronisation.

        Args:
            prediction: Class ids ``[N, H, W]`` of any integer type.
            target: Class ids or ``ignore_index``, of the same shape and device and any integer type.
        """
        counts = self.count(prediction, target).counts
        self.counts = self.counts.to(counts.device) + counts

    def count(self, prediction: Tensor, target: Tensor) -> "ConfusionMatrix":
        """The matrix of a batch alone; arguments as in `update`."""
        assert prediction.shape == target.shape, f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        assert not prediction.is_floating_point(), "class ids are integers, not scores"
        prediction, target = prediction.flatten(), target.flatten()
        size = self.num_classes
        valid = (prediction >= 0) & (prediction < size) & (target >= 0) & (target < size)
        bins = target.long() * size + prediction
        # Invalid ids have a bin of their own, checked in `report`: checking here would synchronise.
        bins.masked_fill_(~valid, size**2 + 1).masked_fill_(target == self.ignore_index, size**2)
        lanes = torch.arange(bins.numel(), device=bins.device) & (LANES - 1)
        # Not `bincount`: it synchronises to determine the size of its result.
        spread = torch.zeros(len(self.counts) * LANES, dtype=torch.int64, device=bins.device)
        spread.scatter_add_(0, bins * LANES + lanes, torch.ones_like(bins))
        matrix = ConfusionMatrix(size, self.ignore_index)
        matrix.counts = spread.view(-1, LANES).sum(1)
        return matrix

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """The sum of two matrices with the same classes, on the device of the first."""
        same = (self.num_classes, self.ignore_index) == (other.num_classes, other.ignore_index)
        assert same, "matrices of different classes"
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total.counts = self.counts + other.counts.to(self.counts.device)
        return total

    def report(self, class_names: Sequence[str]) -> Report:
        """Metrics of everything added so far."""
        assert len(class_names) == self.num_classes, f"{len(class_names)} names for {self.num_classes} classes"
        invalid = int(self.counts[-1])
        assert invalid == 0, f"{invalid} pixels with a class id outside 0 to {self.num_classes - 1}"
        hits, truth, predicted = self.totals.tolist()
        iou, accuracy = ious(hits, truth, predicted), tuple(map(ratio, hits, truth))
        dice = tuple(ratio(2 * hit, true + found) for hit, true, found in zip(hits, truth, predicted, strict=True))
        precision = tuple(map(ratio, hits, predicted))
        return Report(
            class_names=tuple(class_names),
            confusion=tuple(map(tuple, self.matrix.tolist())),
            overall_acc=ratio(sum(hits), sum(truth)),
            mean_acc=mean(accuracy),
            freqw_acc=ratio(math.fsum(n * v for n, v in zip(truth, iou, strict=True) if n), sum(truth)),
            mean_iou=mean(iou),
            mean_dice=mean(dice),
            mean_precision=mean(precision),
            iou=iou,
            dice=dice,
            precision=precision,
            accuracy=accuracy,
            pixels=tuple(truth),
        )
