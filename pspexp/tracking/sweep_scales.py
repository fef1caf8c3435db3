"""Values of a sweep's jobs on the axes of figures: their text, order and position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from pspexp.errors import as_yaml
from pspexp.utils.text import printable, shorten_middle

Floats = npt.NDArray[np.float64]

LOG_RATIO = 20  # largest to smallest number; from this ratio on, an axis is logarithmic
MAX_VALUE_TICKS = 10  # up to this many distinct numbers, each has a tick; beyond, ticks are at round numbers
TICK_DISTANCE = 0.04  # at least, as a fraction of the axis


@dataclass(frozen=True)
class Scale:
    """The position of each job on an axis of length 1, and the positions and labels of the ticks."""

    positions: Floats
    ticks: list[tuple[float, str]]


def as_array(values: Sequence[float | None]) -> Floats:
    """Values as floats; NaN if they are missing or not finite."""
    found = np.array([np.nan if value is None else value for value in values], np.float64)
    found[~np.isfinite(found)] = np.nan
    return found


def _numbers(values: Sequence[object]) -> list[float] | None:
    """The values if all are finite numbers. Booleans do not count as numbers."""
    numbers = [float(value) for value in values if not isinstance(value, bool) and isinstance(value, Real)]
    return numbers if len(numbers) == len(values) and np.isfinite(numbers).all() else None


def as_text(value: object) -> str:
    """A value as in an override, floats with four digits."""
    if not isinstance(value, float):
        return as_yaml(value)
    digits, _, exponent = f"{value:.4g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def levels(values: Sequence[object]) -> tuple[list[str], list[int], bool]:
    """Distinct values in order, the index of each job's value among them, and whether all are numbers.

    Order: null, false, true, numbers, then text in order of appearance.
    """
    numbers = _numbers(values)
    keys: list[Any] = [str(value) for value in values] if numbers is None else numbers
    by_key = dict(zip(keys, values, strict=True))
    distinct = sorted(by_key, key=lambda key: _rank(by_key[key]))
    texts = [as_text(by_key[key]) for key in distinct]
    if len(set(texts)) < len(texts):  # they differ only in later digits
        texts = [str(by_key[key]) for key in distinct]
    index_of = {key: index for index, key in enumerate(distinct)}
    return texts, [index_of[key] for key in keys], numbers is not None


def _rank(value: object) -> tuple[int, float]:
    """Sort key of values of different types."""
    if value is None or isinstance(value, bool):
        return 0, -1 if value is None else value
    number = _numbers([value])
    return (1, number[0]) if number else (2, 0)


def scale(values: Sequence[object]) -> Scale:
    """A linear or logarithmic axis for numbers, see `LOG_RATIO`; other values are spaced evenly."""
    texts, index_of, _ = levels(values)
    numbers = _numbers(values)
    if numbers is None:
        places = _spread(np.arange(len(texts)), 0, len(texts) - 1)
        return Scale(places[index_of], _thin([*zip(places.tolist(), texts, strict=True)]))
    low, high = min(numbers), max(numbers)
    logarithmic = low > 0 and high / low >= LOG_RATIO
    ticks = np.unique(numbers)
    if len(ticks) > MAX_VALUE_TICKS:
        ticks = round_numbers(low, high, logarithmic)
        texts = [as_text(float(tick)) for tick in ticks]
    positions, places = np.array(numbers), ticks
    if logarithmic:
        positions, places, low, high = np.log10(numbers), np.log10(ticks), math.log10(low), math.log10(high)
    positions, places = _spread(positions, low, high), _spread(places, low, high)
    return Scale(positions, _thin([*zip(places.tolist(), texts, strict=True)]))


def round_numbers(low: float, high: float, logarithmic: bool = False) -> Floats:
    """Round numbers for ticks from ``low`` to ``high``."""
    locator: Locator = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10])
    if logarithmic:
        locator = LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,), numticks=12)
    ticks = np.asarray(locator.tick_values(low, high), np.float64)
    return ticks[(ticks >= low) & (ticks <= high)]


def _spread(numbers: npt.NDArray[Any], low: float, high: float) -> Floats:
    """Scale to 0.05..0.95, which leaves room to fan out; a single value is in the middle."""
    return 0.05 + 0.9 * (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)


def _thin(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Remove ticks whose labels would overlap; the first and the last are kept."""
    kept = ticks[:1]
    for tick in ticks[1:]:
        if tick[0] - kept[-1][0] >= TICK_DISTANCE and (tick is ticks[-1] or ticks[-1][0] - tick[0] >= TICK_DISTANCE):
            kept.append(tick)
    return kept


def fan_out(positions: Floats, results: Floats) -> Floats:
    """Separate the lines through the same point; better ones are higher."""
    places = np.unique(positions)
    gap = float(np.diff(places).min()) if len(places) > 1 else 1.0
    order = np.lexsort((np.nan_to_num(results, nan=-np.inf), positions))
    fanned = positions.copy()
    for _, members in groupby(order.tolist(), key=lambda job: positions[job]):
        group = [*members]
        half = min(0.03, 0.2 * gap, 0.006 * (len(group) - 1))
        fanned[group] += np.linspace(-half, half, len(group)) if len(group) > 1 else 0
    return np.asarray(fanned)


def decimals(results: npt.NDArray[Any]) -> int:
    """The number of decimals that distinguishes the results, at least one."""
    span = float(np.nanmax(results) - np.nanmin(results)) or abs(float(np.nanmax(results)))
    return int(np.clip(1 - np.floor(np.log10(span)), 1, 4)) if span else 1


def label(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters that matplotlib can draw."""
    return printable(shorten_middle(text, limit))
