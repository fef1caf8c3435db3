"""The values of classes in label files, as configured: numbers and colours."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pspexp.data.labels import VOC_COLOURS, VOID
from pspexp.errors import ArgumentError, as_yaml

Colour = tuple[int, int, int]
Value = int | Colour  # a number of up to 16 bits, or an RGB colour

MAX_NUMBER = 65535
_HEX = re.compile(r"#?([0-9a-fA-F]{6})")


def parse_values(given: Any) -> list[Value]:
    """The values in one entry of ``label_values``: a number, a colour, or a list of these.

    Three numbers from 0 to 255 in a list are a colour; three numbers are written ``[[1, 2], 3]``.

    Raises:
        ValueError: Says what is wrong.
    """
    if isinstance(given, bool) or not isinstance(given, int | str | list | tuple):
        raise ValueError("must be a number, [r,g,b], '#rrggbb', or a list of these")
    if isinstance(given, int):
        if not 0 <= given <= MAX_NUMBER:
            raise ValueError(f"must be from 0 to {MAX_NUMBER}")
        return [given]
    if isinstance(given, str):
        if not (match := _HEX.fullmatch(given.strip())):
            raise ValueError("must be a number, [r,g,b], '#rrggbb', or a list of these")
        return [unpack(int(match[1], 16))]
    if len(given) == 3 and all(isinstance(part, int) and not isinstance(part, bool) for part in given):
        red, green, blue = given
        if not all(0 <= part <= 255 for part in given):
            raise ValueError("must be a colour with three parts from 0 to 255; write three numbers as [[a,b],c]")
        return [(red, green, blue)]
    return [value for part in given for value in parse_values(part)]


def parse_label_values(
    label_values: Sequence[Any] | None,
    ignore_values: Sequence[Any],
    num_classes: int,
    *,
    first: int = 0,
) -> tuple[list[list[Value]], list[Value]]:
    """The values of each class, and the ignored ones.

    Args:
        label_values: One entry per class, see `parse_values`; None: ``first``, ``first + 1``, and so on.
        ignore_values: Further values. 255 alone, the default, gives way to a class with this value.
        num_classes: Number of classes.
        first: Value of class 0 by default; smaller ones are ignored.

    Raises:
        ArgumentError: Lists every invalid entry, and every value with two meanings.
    """
    if label_values is None:
        label_values = range(first, first + num_classes)
        ignore_values = [*ignore_values, *(value for value in range(first) if value not in ignore_values)]
    problems: list[str] = []
    if len(label_values) != num_classes:
        problems.append(f"label_values: {len(label_values)} entries for {num_classes} classes; give one per class")
    classes = list(_parsed("label_values", label_values, problems))
    ignored = [value for values in _parsed("ignore_values", ignore_values, problems) for value in values]
    if VOID in ignored and any(VOID in values for values in classes) and list(ignore_values) == [VOID]:
        ignored = []
    owners: dict[Value, list[str]] = {}
    for name, values in [*((f"class {index}", values) for index, values in enumerate(classes)), ("ignored", ignored)]:
        for value in dict.fromkeys(values):
            owners.setdefault(value, []).append(name)
    problems += [
        f"label_values: {show_value(value)} means {' and '.join(names)}; give each value one meaning"
        for value, names in owners.items()
        if len(names) > 1
    ]
    if problems:
        raise ArgumentError(*problems)
    return classes, ignored


def _parsed(name: str, entries: Sequence[Any], problems: list[str]) -> Iterator[list[Value]]:
    for index, entry in enumerate(entries):
        try:
            yield parse_values(entry)
        except ValueError as error:
            problems.append(f"{name}.{index}={as_yaml(entry)}: {error}")


def check_tolerance(tolerance: int, classes: Sequence[Sequence[Value]], ignored: Sequence[Value]) -> None:
    """Raise ArgumentError if a value could be within the tolerance of two values with different meanings."""
    if not tolerance:
        return
    flat = [(value, index) for index, values in enumerate([*classes, ignored]) for value in values]
    pairs = [
        (distance(a, b), a, b)
        for k, (a, i) in enumerate(flat)
        for b, j in flat[:k]
        if i != j and isinstance(a, int) == isinstance(b, int)
    ]
    if pairs and (nearest := min(pairs, key=lambda pair: pair[0]))[0] <= 2 * tolerance:
        gap, a, b = nearest
        raise ArgumentError(
            f"label_tolerance={tolerance}: label values {show_value(b)} and {show_value(a)} are only {gap} apart; "
            f"must be at most {max((gap - 1) // 2, 0)}"
        )


def distance(a: Value, b: Value) -> int:
    """The largest absolute difference of two numbers or two colours, per channel."""
    first, second = ((value,) if isinstance(value, int) else value for value in (a, b))
    return max(abs(x - y) for x, y in zip(first, second, strict=True))


def show_value(value: Value) -> str:
    """A value as it is written in ``label_values``: ``7`` or ``'#ff0000'``."""
    return str(value) if isinstance(value, int) else f"'#{pack(value):06x}'"


def show_values(pixels: Mapping[Value, int], limit: int = 8) -> str:
    """Values and their numbers of pixels, most frequent first."""
    ordered = sorted(pixels.items(), key=lambda item: -item[1])
    shown = [f"{show_value(value)} ({n:,} {'pixel' if n == 1 else 'pixels'})" for value, n in ordered[:limit]]
    return ", ".join(shown) + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")


def as_entries(values: Sequence[Value]) -> list[Any]:
    """Values as an entry of ``label_values`` that `parse_values` reads as the same."""
    entry: list[Any] = [value if isinstance(value, int) else show_value(value).strip("'") for value in values]
    three_numbers = len(entry) == 3 and all(isinstance(value, int) for value in entry)
    return [entry[:2], entry[2]] if three_numbers else entry


def voc_colour(number: int) -> Colour:
    """VOC's colour of a label number."""
    red, green, blue = VOC_COLOURS[number].tolist()
    return red, green, blue


def pack(colour: Colour) -> int:
    """A colour as one number."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def unpack(code: int) -> Colour:
    """The colour of a number."""
    return code >> 16, code >> 8 & 255, code & 255


def channels(codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The channels ``[n, 3]`` of packed colours ``[n]``."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
