"""Values of a sweep's jobs, for pictures: as text, in order, and where they are on an axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

Floats = npt.NDArray[np.float64]

LOG_RATIO = 20  # largest by smallest number from which an axis is logarithmic
MAX_VALUE_TICKS = 10  # distinct numbers that are written themselves, beside an axis; more get round numbers
TICK_DISTANCE = 0.04  # least, in heights of an axis


@dataclass(frozen=True)
class Scale:
    """Where each job is on an axis of height 1, and what is written beside the axis."""

    positions: Floats
    ticks: list[tuple[float, str]]


def results(values: Sequence[float | None]) -> Floats:
    """NaN where there is none."""
    found = np.array([np.nan if value is None else value for value in values], np.float64)
    found[~np.isfinite(found)] = np.nan
    return found


def _numbers(values: Sequence[object]) -> list[float] | None:
    """The values if each is a finite number. Booleans are words here."""
    numbers = [float(value) for value in values if not isinstance(value, bool) and isinstance(value, Real)]
    return numbers if len(numbers) == len(values) and np.isfinite(numbers).all() else None


def text(value: object) -> str:
    """A value as it is typed in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, float):
        return str(value)
    digits, _, exponent = f"{value:.4g}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def levels(values: Sequence[object]) -> tuple[list[str], list[int], bool]:
    """Distinct values in order, the index of each job's among them, and whether all are numbers.

    Order: null, false, true, numbers, then words as they appear.
    """
    numbers = _numbers(values)
    keys: list[Any] = [str(value) for value in values] if numbers is None else numbers
    by_key = dict(zip(keys, values, strict=True))
    distinct = sorted(by_key, key=lambda key: _rank(by_key[key]))
    texts = [text(by_key[key]) for key in distinct]
    if len(set(texts)) < len(texts):  # differ only in digits that are usually left out
        texts = [str(by_key[key]) for key in distinct]
    index_of = {key: index for index, key in enumerate(distinct)}
    return texts, [index_of[key] for key in keys], numbers is not None


def _rank(value: object) -> tuple[int, float]:
    """Order of values of different kinds on one axis."""
    if value is None or isinstance(value, bool):
        return 0, -1 if value is None else value
    number = _numbers([value])
    return (1, number[0]) if number else (2, 0)


def scale(values: Sequence[object]) -> Scale:
    """Numbers are linear or logarithmic, see `LOG_RATIO`; anything else is spaced evenly."""
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
        texts = [text(float(tick)) for tick in ticks]
    positions, places = np.array(numbers), ticks
    if logarithmic:
        positions, places, low, high = np.log10(numbers), np.log10(ticks), math.log10(low), math.log10(high)
    positions, places = _spread(positions, low, high), _spread(places, low, high)
    return Scale(positions, _thin([*zip(places.tolist(), texts, strict=True)]))


def round_numbers(low: float, high: float, logarithmic: bool = False) -> Floats:
    """Some, from `low` to `high`."""
    locator: Locator = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10])
    if logarithmic:
        locator = LogLocator(subs=(1, 2, 5) if high / low < 1e4 else (1,), numticks=12)
    ticks = np.asarray(locator.tick_values(low, high), np.float64)
    return ticks[(ticks >= low) & (ticks <= high)]


def _spread(numbers: npt.NDArray[Any], low: float, high: float) -> Floats:
    """To 0.05..0.95: room for lines beside each other; one value is in the middle."""
    return 0.05 + 0.9 * (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)


def _thin(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without those that would be written over another; the first and the last stay."""
    kept = ticks[:1]
    for tick in ticks[1:]:
        if tick[0] - kept[-1][0] >= TICK_DISTANCE and (tick is ticks[-1] or ticks[-1][0] - tick[0] >= TICK_DISTANCE):
            kept.append(tick)
    return kept


def fan(positions: Floats, results: Floats) -> Floats:
    """Lines through the same point beside each other, the better ones above."""
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
    """Enough to tell the results apart, at least one."""
    span = float(np.nanmax(results) - np.nanmin(results)) or abs(float(np.nanmax(results)))
    return int(np.clip(1 - np.floor(np.log10(span)), 1, 4)) if span else 1


def shorten(name: str, length: int) -> str:
    """One line, without its middle where too long: long names often differ at their ends. ``$`` begins no formula."""
    name = " ".join(name.split())
    if len(name) > length:
        name = f"{name[: length // 2]}…{name[len(name) - (length - 1) // 2 :]}"
    return name.replace("$", r"\$")
