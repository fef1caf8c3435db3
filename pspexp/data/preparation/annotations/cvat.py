"""CVAT's exports: "CVAT for images 1.1" (XML), and "Segmentation mask 1.1", see `cvat_masks`."""

import math
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from pspexp.data.preparation.annotations.classes import clean_label
from pspexp.data.preparation.annotations.cvat_masks import LABEL_MAP, read_masks
from pspexp.data.preparation.annotations.files import files_below, image_name, read_all
from pspexp.data.preparation.annotations.items import Drawing, Found, Options, Shape
from pspexp.data.preparation.annotations.safe_xml import read_xml
from pspexp.data.preparation.annotations.shapes import (
    Geometry,
    Outline,
    Patch,
    Point,
    coordinate_problem,
    outline_problem,
    rotated,
    size_problem,
)
from pspexp.errors import UserError

_WITHOUT_AREA = ("polyline", "points", "skeleton", "tag")
_ELLIPSE_POINTS = 180


def read_cvat(source: Path, options: Options) -> Found:
    """Read a file or folder of XML files, or a folder with ``labelmap.txt`` and ``SegmentationClass``.

    Polylines, points, skeletons and tags have no area and are ignored. Shapes are in the order of their ``z_order``,
    those of the same ``z_order`` in that of the file.
    """
    if source.suffix.lower() == ".zip":
        raise UserError(f"{source}: is an archive; unpack it and give the folder")
    if source.is_file():
        return read_all(_read, [source], options)
    if any((folder / LABEL_MAP).is_file() for folder in (source, source.absolute().parent)):
        return read_masks(source, options)
    return read_all(_read, files_below(source, ".xml"), options)


def _read(path: Path) -> Found:
    try:
        root = read_xml(path)
        if root.tag != "annotations" or root.find("track") is not None:
            kind = "CVAT for video" if root.tag == "annotations" else f"a <{root.tag}> file"
            raise UserError(f"{path}: {kind}; export it as 'CVAT for images 1.1'")
    except UserError as error:
        return Found(problems=list(error.problems))
    found = Found()
    try:
        found.names = _declared(root)
    except UserError as error:
        found.problems.append(f"{path}: {error}")
    images = root.findall("image")
    if not images:
        found.problems.append(f"{path}: contains no images; export it as 'CVAT for images 1.1'")
    for number, image in enumerate(images):
        name = image.get("name", f"image {number}")
        try:
            size = int(_number(image, "width")), int(_number(image, "height"))
            if problem := size_problem(*size):
                raise UserError(problem)
        except UserError as error:
            found.problems.append(f"{path}: {name}: {error}")
            continue
        shapes = _shapes(path, name, image, found)
        found.names += [shape.label for shape in shapes]
        found.items.append(Drawing(str(path), image_name(name), size, shapes))
    return found


def _declared(root: Element) -> list[str]:
    """The labels of the task, except those of shapes without an area."""
    return [
        clean_label(label.findtext("name", ""))
        for label in root.iterfind("meta//labels/label")
        if label.findtext("type") not in _WITHOUT_AREA and label.find("parent") is None
    ]


def _shapes(path: Path, name: str, image: Element, found: Found) -> list[Shape]:
    """The shapes of an image; adds problems and the number of ignored ones to ``found``."""
    shapes = []
    for number, element in enumerate(image):
        if element.tag in _WITHOUT_AREA:
            found.ignored += 1
            continue
        where = f"{element.tag} {number}"
        try:
            shape = Shape(clean_label(element.get("label", "")), _geometry(element), where)
            shapes.append((int(_number(element, "z_order", 0)), shape))
        except UserError as error:
            found.problems.append(f"{path}: {name}: {where}: {error}")
    shapes.sort(key=lambda pair: pair[0])
    return [shape for _, shape in shapes]


def _geometry(element: Element) -> Geometry:
    if element.tag not in _GEOMETRIES:
        raise UserError(f"a <{element.tag}> cannot be converted; draw a polygon instead")
    geometry = _GEOMETRIES[element.tag](element)
    if isinstance(geometry, Outline) and (problem := outline_problem(geometry.kind, geometry.points)):
        raise UserError(problem)
    return geometry


def _polygon(element: Element) -> Outline:
    words = [point.split(",") for point in element.get("points", "").split(";") if point.strip()]
    try:
        return Outline("polygon", [(float(x), float(y)) for x, y in words])
    except ValueError as error:
        raise UserError("its points are not x,y;x,y;…; export it again") from error


def _box(element: Element) -> Outline:
    left, top, right, bottom = (_number(element, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    if not element.get("rotation"):
        return Outline("rectangle", [(left, top), (right, bottom)])
    return _turned(element, [(left, top), (right, top), (right, bottom), (left, bottom)])


def _ellipse(element: Element) -> Outline:
    x, y, rx, ry = (_number(element, name) for name in ("cx", "cy", "rx", "ry"))
    angles = [2 * math.pi * k / _ELLIPSE_POINTS for k in range(_ELLIPSE_POINTS)]
    return _turned(element, [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles])


def _turned(element: Element, points: list[Point]) -> Outline:
    """A polygon with CVAT's rotation about the centre of its points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    centre = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    return Outline("polygon", rotated(points, centre, _number(element, "rotation", 0)))


def _mask(element: Element) -> Patch:
    """A mask: run lengths of rows, alternately outside and inside, in a box of the image."""
    left, top, width, height = (int(_number(element, name)) for name in ("left", "top", "width", "height"))
    try:
        runs = [int(word) for word in element.get("rle", "").split(",")]
    except ValueError as error:
        raise UserError("its rle is not a list of whole numbers; export it again") from error
    if problem := size_problem(width, height):
        raise UserError(problem)
    if min(runs) < 0 or sum(runs) != width * height:
        raise UserError(f"its rle has {sum(runs)} pixels, but it is {width}×{height}; export it again")
    return Patch(left, top, np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width))


def _number(element: Element, name: str, default: float | None = None) -> float:
    text = element.get(name)
    if text is None and default is not None:
        return default
    try:
        value = float(text or "")
    except ValueError as error:
        raise UserError(f"{name}='{text or ''}' is not a number; correct it") from error
    if problem := coordinate_problem([value]):
        raise UserError(f"{name}: {problem}")
    return value


_GEOMETRIES: dict[str, Callable[[Element], Geometry]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}
