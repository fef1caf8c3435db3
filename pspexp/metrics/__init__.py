"""What an evaluation measures: the confusion matrix and what follows from it, and metrics that need more than that."""

from pspexp.metrics.base import Metric
from pspexp.metrics.boundary import BoundaryIoU
from pspexp.metrics.confusion import ConfusionMatrix
from pspexp.metrics.report import Report, percent

__all__ = ["BoundaryIoU", "ConfusionMatrix", "Metric", "Report", "percent"]
