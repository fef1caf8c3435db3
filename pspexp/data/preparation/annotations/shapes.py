"""Shapes of annotations as masks, drawn by Pillow.

Pillow includes a shape's border: a rectangle from (2, 2) to (6, 5) covers columns 2 to 6 and rows 2 to 5.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from pspexp.data.images import MAX_PIXELS

Size = tuple[int, int]  # width, height
Point = tuple[float, float]
Mask = npt.NDArray[np.bool_]  # [H, W]

# Pillow computes with 32-bit integers: larger coordinates give wrong polygons, and circles that take minutes.
MAX_COORDINATE = 100_000
_LINE_WIDTH, _POINT_RADIUS = 10, 5  # pixels; labelme's


class Geometry(Protocol):
    """What a shape covers."""

    def mask(self, size: Size) -> Mask:
        """The covered pixels of an image of this size; parts outside are cut off."""


class Outline(NamedTuple):
    """A shape given by points.

    Attributes:
        kind: One of labelme's shape types.
        points: Its points; see `outline_problem`.
    """

    kind: str
    points: Sequence[Point]

    def mask(self, size: Size) -> Mask:
        image = Image.new("L", size)
        _DRAW[self.kind](ImageDraw.Draw(image), self.points)
        return np.asarray(image) > 0


class Patch(NamedTuple):
    """A mask of a part of the image.

    Attributes:
        left: Column of its first pixel; may be outside the image.
        top: Row of its first pixel.
        pixels: The mask.
    """

    left: int
    top: int
    pixels: Mask

    def mask(self, size: Size) -> Mask:
        width, height = size
        result = np.zeros((height, width), bool)
        x, y = max(self.left, 0), max(self.top, 0)
        part = self.pixels[y - self.top : max(height - self.top, 0), x - self.left : max(width - self.left, 0)]
        result[y : y + part.shape[0], x : x + part.shape[1]] = part
        return result


def outline_problem(kind: str, points: Sequence[Point]) -> str:
    """Why an outline cannot be drawn, or an empty string."""
    if kind not in _DRAW:
        return f"shape type '{kind}' is unknown; known are {', '.join(_DRAW)} and mask"
    least, most = _POINTS[kind]
    if not least <= len(points) <= (most or len(points)):
        number = f"{least}" if most else f"at least {least}"
        return f"a {kind} needs {number} points, not {len(points)}; correct or remove it"
    return coordinate_problem(value for point in points for value in point)


def coordinate_problem(values: Iterable[float]) -> str:
    """Why coordinates cannot be drawn, or an empty string."""
    wrong = [value for value in values if not abs(value) <= MAX_COORDINATE]
    return f"coordinate {wrong[0]:g} is not within ±{MAX_COORDINATE:,}; correct or remove the shape" if wrong else ""


def size_problem(width: int, height: int) -> str:
    """Why an image cannot have this size, or an empty string."""
    if width > 0 and height > 0 and width * height <= MAX_PIXELS:
        return ""
    return f"image size {width}×{height} is not from 1×1 to {MAX_PIXELS:,} pixels; correct it"


def rotated(points: Sequence[Point], centre: Point, degrees: float) -> list[Point]:
    """Points turned clockwise, as seen in the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    offsets = [(x - centre[0], y - centre[1]) for x, y in points]
    # Rounded: Pillow truncates coordinates, and 2.9999999 would lose a pixel.
    return [(round(centre[0] + x * cos - y * sin, 6), round(centre[1] + x * sin + y * cos, 6)) for x, y in offsets]


def _polygon(draw: ImageDraw.ImageDraw, points: Sequence[Point]) -> None:
    draw.polygon(list(points), outline=1, fill=1)


def _rectangle(draw: ImageDraw.ImageDraw, points: Sequence[Point]) -> None:
    (x0, y0), (x1, y1) = points
    draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)


def _disc(draw: ImageDraw.ImageDraw, centre: Point, radius: float) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)


_DRAW: dict[str, Callable[[ImageDraw.ImageDraw, Sequence[Point]], None]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": lambda draw, points: _disc(draw, points[0], math.dist(*points)),
    "line": lambda draw, points: draw.line(list(points), fill=1, width=_LINE_WIDTH),
    "linestrip": lambda draw, points: draw.line(list(points), fill=1, width=_LINE_WIDTH, joint="curve"),
    "point": lambda draw, points: _disc(draw, points[0], _POINT_RADIUS),
    "oriented_rectangle": _polygon,
}
_POINTS = {  # fewest and most; 0 stands for any number
    "polygon": (3, 0),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, 0),
    "point": (1, 1),
    "oriented_rectangle": (4, 4),
}
