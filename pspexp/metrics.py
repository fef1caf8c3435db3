"""Confusion matrix, and pixel accuracy and intersection over union computed from it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

LANES = 64
"""Copies of each counter, a power of two. Most pixels fall into few cells of the matrix; with a single counter per
cell, the threads of an accelerator would contend for it."""


@dataclass(frozen=True)
class Report:
    """Metrics of one evaluation, as fractions from 0 to 1; NaN where undefined.

    Attributes:
        class_names: Names in the order of class ids.
        confusion: Number of pixels, rows = ground truth, columns = prediction.
        overall_acc: Correct pixels / all pixels.
        mean_acc: Mean of `accuracy` over the classes with ground truth.
        freqw_acc: Frequency-weighted IoU, the mean of `iou` weighted by ground-truth pixels (Long et al., 2015). An
            IoU despite its name, which is the reference's.
        mean_iou: Mean of `iou` over the classes in ground truth or prediction.
        iou: IoU of each class; NaN if in neither ground truth nor prediction, 0 if only predicted.
        accuracy: Fraction of each class's ground-truth pixels that are correct; NaN without ground truth.
        pixels: Number of ground-truth pixels of each class.
    """

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    overall_acc: float
    mean_acc: float
    freqw_acc: float
    mean_iou: float
    iou: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]

    def scalars(self, prefix: str) -> dict[str, float]:
        """Defined metrics by name, prefixed with ``prefix/``."""
        values = {name: getattr(self, name) for name in ("overall_acc", "mean_acc", "freqw_acc", "mean_iou")}
        values |= {f"iou/{name}": iou for name, iou in zip(self.class_names, self.iou, strict=True)}
        return {f"{prefix}/{name}": value for name, value in values.items() if not math.isnan(value)}

    def rows(self) -> list[tuple[str, float | None, float | None, int]]:
        """``(class name, iou, accuracy, pixels)`` of each class; None where undefined."""
        defined = [[None if math.isnan(v) else v for v in values] for values in (self.iou, self.accuracy)]
        return list(zip(self.class_names, *defined, self.pixels, strict=True))

    def table(self) -> str:
        """Plain-text table in percent; ``–`` where undefined."""
        rows = [(name, percent(iou), percent(acc), f"{pixels:,}") for name, iou, acc, pixels in self.rows()]
        mean = ("mean", percent(self.mean_iou), percent(self.mean_acc), f"{sum(self.pixels):,}")
        overall = ("overall", "", percent(self.overall_acc), "")
        weighted = ("frequency-weighted IoU", percent(self.freqw_acc), "", "")
        return _text_table(("class", "IoU %", "accuracy %", "pixels"), rows, [mean, overall, weighted])


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

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, without host–device synchronisation.

        Args:
            prediction: Class ids ``[N, H, W]`` of any integer type.
            target: Class ids or ``ignore_index``, of the same shape and device and any integer type.
        """
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
        self.counts = self.counts.to(bins.device) + spread.view(-1, LANES).sum(1)

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
        counts = self.counts.tolist()
        assert counts[-1] == 0, f"{counts[-1]} pixels with a class id outside 0 to {self.num_classes - 1}"
        size = self.num_classes
        confusion = tuple(tuple(counts[row * size : (row + 1) * size]) for row in range(size))
        hits = [confusion[i][i] for i in range(size)]
        truth = [sum(row) for row in confusion]
        unions = [truth[i] + sum(row[i] for row in confusion) - hits[i] for i in range(size)]
        iou = tuple(map(_ratio, hits, unions))
        accuracy = tuple(map(_ratio, hits, truth))
        return Report(
            class_names=tuple(class_names),
            confusion=confusion,
            overall_acc=_ratio(sum(hits), sum(truth)),
            mean_acc=_mean(accuracy),
            freqw_acc=_ratio(math.fsum(n * v for n, v in zip(truth, iou, strict=True) if n), sum(truth)),
            mean_iou=_mean(iou),
            iou=iou,
            accuracy=accuracy,
            pixels=tuple(truth),
        )


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return _ratio(math.fsum(defined), len(defined))


def percent(fraction: float | None) -> str:
    """A fraction in percent with two decimals, without the percent sign; ``–`` for None and NaN."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f}"


def _text_table(header: Sequence[str], *blocks: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first aligned left, the others right; a rule above each block of rows."""
    widths = [max(map(len, column)) for column in zip(header, *chain(*blocks), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(cells: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers]).rstrip()

    return "\n".join([line(header), *(text for block in blocks for text in (rule, *map(line, block)))])
