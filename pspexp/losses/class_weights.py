"""Weights of classes in a loss: what a loss takes, and how they follow from numbers of pixels."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import WrapValidator
from pydantic_core import PydanticCustomError

from pspexp.errors import did_you_mean
from pspexp.utils.arguments import NonNegativeNumber

Floats = npt.NDArray[np.float64]


def median_frequency(counts: npt.NDArray[np.int64]) -> Floats:
    """Median frequency / frequency of the class (Eigen and Fergus, 2015, sec. 6.3.2).

    The frequency is the share of the class in the labelled pixels of the images that contain it.
    """
    labelled_there = np.where(counts > 0, counts.sum(axis=1, keepdims=True), 0).sum(axis=0)
    frequencies: Floats = counts.sum(axis=0) / labelled_there
    return np.asarray(np.median(frequencies) / frequencies)


def sqrt_median_frequency(counts: npt.NDArray[np.int64]) -> Floats:
    """Square root of `median_frequency`."""
    return np.asarray(np.sqrt(median_frequency(counts)))


def inverse(counts: npt.NDArray[np.int64]) -> Floats:
    """1 / share of the class in all labelled pixels, divided by the mean over the classes."""
    weights = 1 / counts.sum(axis=0)
    return np.asarray(weights / weights.mean())


METHODS: dict[str, Callable[[npt.NDArray[np.int64]], Floats]] = {
    "auto": sqrt_median_frequency,
    "sqrt_median_frequency": sqrt_median_frequency,
    "median_frequency": median_frequency,
    "inverse": inverse,
}


def weights_from_counts(counts: npt.NDArray[np.int64], method: str) -> list[float]:
    """One weight for each class, to six significant digits; 1 for classes without pixels, which no formula includes.

    Args:
        counts: int64 ``[images, C]``, labelled pixels of each class in each image.
        method: One of `METHODS`.
    """
    weights = np.ones(counts.shape[1])
    if (found := counts.any(axis=0)).any():
        weights[found] = METHODS[method](counts[:, found])
    return [float(f"{weight:.6g}") for weight in weights]


def _numbers_or_method(value: Any, check_numbers: Callable[[Any], Any]) -> Any:
    if not isinstance(value, str):
        return check_numbers(value)
    if value not in METHODS:
        words = f"{', '.join([*METHODS][:-1])} or {[*METHODS][-1]}"
        problem = f"must be null, a list with one weight for each class, {words}{did_you_mean(value, METHODS)}"
        raise PydanticCustomError("class_weights", "{problem}", {"problem": problem})
    return value


if TYPE_CHECKING:
    ClassWeights = Sequence[float] | str | None
else:
    ClassWeights = Annotated[Sequence[NonNegativeNumber] | None, WrapValidator(_numbers_or_method)]
