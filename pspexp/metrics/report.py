"""The metrics of one evaluation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pspexp.utils.tables import text_table

MEANS = ("overall_acc", "mean_acc", "freqw_acc", "mean_iou", "mean_dice", "mean_precision", "mean_recall")
"""The metrics that every evaluation has, except for the IoU of each class."""


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
        mean_dice: Mean of `dice` over the same classes.
        mean_precision: Mean of `precision` over the classes that were predicted.
        iou: IoU of each class; NaN if in neither ground truth nor prediction, 0 if only predicted.
        dice: Dice coefficient (F1 score) of each class, 2 × correct / (ground truth + predicted); NaN if in neither.
        precision: Fraction of the pixels predicted as each class that are correct; NaN if never predicted.
        accuracy: Fraction of each class's ground-truth pixels that are correct; NaN without ground truth.
        pixels: Number of ground-truth pixels of each class.
        others: Metrics that do not follow from the confusion matrix, by name.
        class_columns: Such metrics of each class, by name.
    """

    class_names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    overall_acc: float
    mean_acc: float
    freqw_acc: float
    mean_iou: float
    mean_dice: float
    mean_precision: float
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    precision: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]
    others: Mapping[str, float] = field(default_factory=dict)
    class_columns: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def recall(self) -> tuple[float, ...]:
        """The recall of each class, which is its `accuracy`."""
        return self.accuracy

    @property
    def mean_recall(self) -> float:
        """Mean of `recall` over the classes with ground truth, which is `mean_acc`."""
        return self.mean_acc

    def without_metrics(self) -> "Report":
        """The report of the same pixels with every metric undefined: the predictions mean nothing."""
        column = (math.nan,) * len(self.class_names)
        undefined: dict[str, Any] = dict.fromkeys(MEANS, math.nan)
        undefined |= dict.fromkeys(("iou", "dice", "precision", "accuracy"), column)
        del undefined["mean_recall"]  # which follows from the others
        return replace(self, **undefined, others={}, class_columns={})

    def scalars(self, prefix: str) -> dict[str, float]:
        """Defined metrics by name, prefixed with ``prefix/``."""
        values = {name: getattr(self, name) for name in MEANS}
        values |= {f"iou/{name}": iou for name, iou in zip(self.class_names, self.iou, strict=True)}
        return {f"{prefix}/{name}": value for name, value in {**values, **self.others}.items() if not math.isnan(value)}

    def rows(self) -> list[tuple[str, float | None, float | None, int]]:
        """``(class name, iou, accuracy, pixels)`` of each class; None where undefined."""
        columns = defined(self.iou), defined(self.accuracy)
        return list(zip(self.class_names, *columns, self.pixels, strict=True))

    def columns(self) -> dict[str, Sequence[object]]:
        """Everything that is known of each class, by title of the column; None where undefined."""
        first = {"class": self.class_names, "iou": defined(self.iou), "accuracy": defined(self.accuracy)}
        values = {"dice": self.dice, "precision": self.precision, "recall": self.recall, **self.class_columns}
        return {**first, "pixels": self.pixels, **{name: defined(column) for name, column in values.items()}}

    def table(self) -> str:
        """Plain-text table in percent, ``–`` where undefined; then the metrics of `others` as they are."""
        rows = [(name, percent(iou), percent(acc), f"{pixels:,}") for name, iou, acc, pixels in self.rows()]
        mean = ("mean", percent(self.mean_iou), percent(self.mean_acc), f"{sum(self.pixels):,}")
        overall = ("overall", "", percent(self.overall_acc), "")
        weighted = ("frequency-weighted IoU", percent(self.freqw_acc), "", "")
        table = text_table(("class", "IoU %", "accuracy %", "pixels"), rows, [mean, overall, weighted])
        return "\n".join([table, *self.other_lines()])

    def other_lines(self) -> list[str]:
        """A line for each metric of `others`."""
        return [f"{name}: {'–' if math.isnan(value) else f'{value:.4f}'}" for name, value in self.others.items()]


def defined(values: Iterable[float]) -> list[float | None]:
    """The values, None in the place of NaN."""
    return [None if math.isnan(value) else value for value in values]


def ratio(part: float, whole: float) -> float:
    """``part / whole``; NaN if ``whole`` is 0."""
    return part / whole if whole else math.nan


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return ratio(math.fsum(known), len(known))


def ious(hits: Sequence[int], truth: Sequence[int], predicted: Sequence[int]) -> tuple[float, ...]:
    """The IoU of each class, from its numbers of correct, ground-truth and predicted pixels."""
    return tuple(ratio(hit, true + found - hit) for hit, true, found in zip(hits, truth, predicted, strict=True))


def percent(fraction: float | None) -> str:
    """A fraction in percent with two decimals, without the percent sign; ``–`` for None and NaN."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f}"
