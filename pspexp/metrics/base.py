"""Metrics beside those of the confusion matrix: the nodes of the configuration group ``metrics``.

Any object with ``reset()``, ``update(prediction, target)`` and ``compute()`` will do, such as those of torchmetrics.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pspexp.errors import UserError, setting
from pspexp.metrics.report import MEANS, mean

RESERVED = {*MEANS, *(name.removeprefix("mean_") for name in MEANS), "accuracy", "class", "pixels", "loss"}
"""Names that the report and its table use themselves."""


class AnyMetric(Protocol):
    """What an evaluation needs of a metric; see `Metric` for a base class."""

    def reset(self) -> None:
        """Forget all images. Called before each evaluation."""
        ...

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add images of the same size.

        Args:
            prediction: Class ids, int64 ``[N, H, W]``, on the device.
            target: Class ids or the data set's ``ignore_index``, likewise.
        """
        ...

    def compute(self) -> Any:
        """The result over the images of all processes, called once in each of them.

        Returns:
            A number, which is logged as ``val/<name>``; one for each class, for the column ``<name>`` of the table and,
            as their mean, ``val/mean_<name>``; or numbers by key, logged as ``val/<name>/<key>``. NaN where undefined.
        """
        ...


class Metric:
    """Base class for a metric that adds something up over the images.

    Attributes:
        state: The sums, set to zeros by `reset`. They are added up over the processes before `compute`: integers
            exactly, floating-point numbers in another order than in a single process.
    """

    state: Tensor

    def reset(self) -> None:
        """See `AnyMetric.reset`; sets ``state``."""
        raise NotImplementedError

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """See `AnyMetric.update`; calls `add`. Reading a tensor makes the host wait for the device."""
        raise NotImplementedError

    def compute(self) -> Any:
        """See `AnyMetric.compute`; reads ``state``, which is on the CPU."""
        raise NotImplementedError

    def add(self, values: Tensor) -> None:
        """Add to ``state``, on the device of ``values``."""
        self.state = self.state.to(values.device) + values


def metric_problems(metrics: Mapping[str, object], num_processes: int) -> Iterator[str]:
    """A line about each metric that cannot be used, beginning with its name.

    Args:
        metrics: By name.
        num_processes: Number of processes, over which a metric must add up its images.
    """
    for name, metric in metrics.items():
        if name in RESERVED:
            yield f"{name}: is the name of another result; choose another one"
        kind, fix = type(metric).__name__, "derive it from pspexp.metrics.Metric, or use a metric of torchmetrics"
        if missing := [one for one in ("reset", "update", "compute") if not callable(getattr(metric, one, None))]:
            yield f"{name}: {kind} has no method {missing[0]}; {fix}"
        elif num_processes > 1 and not is_synchronised(metric):
            yield f"{name}: {kind} would see only the images of one of the {num_processes} processes; {fix}"


def is_synchronised(metric: object) -> bool:
    """Whether a metric adds up the images of all processes; those of torchmetrics have a method ``sync``."""
    parts = metric.modules() if isinstance(metric, nn.Module) else [metric]  # a collection has metrics in it
    return isinstance(metric, Metric) or any(callable(getattr(part, "sync", None)) for part in parts)


class Results(NamedTuple):
    """Numbers by name, and numbers for each class by name."""

    others: dict[str, float]
    class_columns: dict[str, tuple[float, ...]]


def results_of(computed: Mapping[str, Any], num_classes: int) -> Results:
    """What metrics have computed, by the name under which it is reported.

    Args:
        computed: The result of `AnyMetric.compute`, by name of the metric.
        num_classes: Number of classes.

    Raises:
        UserError: Names each metric whose result is none of the three kinds.
    """
    found, problems = Results({}, {}), []
    for name, value in computed.items():
        try:
            if isinstance(value, Mapping):
                found.others.update({f"{name}/{key}": float(number) for key, number in value.items()})
                continue
            values = torch.as_tensor(value.cpu() if isinstance(value, Tensor) else value, dtype=torch.float64)
        except (ValueError, TypeError, RuntimeError):
            values = torch.empty(0)
        if values.numel() == 1:
            found.others[name] = float(values)
        elif values.shape == (num_classes,):
            column = found.class_columns[name] = tuple(values.tolist())
            found.others[f"mean_{name}"] = mean(column)
        else:
            what = f"an array of shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
            problems.append(
                f"{setting('metrics')}.{name}: compute returned {what}; let it return a number, {num_classes} numbers "
                "(one for each class), or a dictionary of numbers"
            )
    if problems:
        raise UserError(*problems, shared=True)
    return found
