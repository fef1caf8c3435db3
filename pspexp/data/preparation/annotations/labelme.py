"""Labelme's JSON files, drawn as labelme draws them."""

import base64
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel

from pspexp.data.images import BROKEN_IMAGE
from pspexp.data.preparation.annotations.classes import clean_label
from pspexp.data.preparation.annotations.files import files_below, image_size, read_all, read_json, relative_name
from pspexp.data.preparation.annotations.items import Drawing, Found, Options, Shape
from pspexp.data.preparation.annotations.shapes import (
    Geometry,
    Outline,
    Patch,
    Point,
    Size,
    coordinate_problem,
    outline_problem,
    size_problem,
)
from pspexp.errors import UserError
from pspexp.utils.text import first_line


class _Shape(BaseModel):
    label: str
    points: list[Point]
    shape_type: str | None = None
    mask: str | None = None


class _File(BaseModel):
    shapes: list[_Shape]
    imagePath: str | None = None  # noqa: N815 - labelme's spelling
    imageWidth: int | None = None  # noqa: N815
    imageHeight: int | None = None  # noqa: N815


def read_labelme(source: Path, options: Options) -> Found:
    """Read a folder of labelme's files, at any depth; see `read_all`."""
    return read_all(partial(_read, folder=source), files_below(source, ".json"), options)


def _read(path: Path, folder: Path) -> Found:
    found = Found()
    try:
        content = read_json(path, _File, "a labelme file")
        size = _size(path, content)
    except UserError as error:
        return Found(problems=list(error.problems))
    shapes = []
    for index, shape in enumerate(content.shapes):
        where = f"shapes.{index}"
        try:
            shapes.append(Shape(clean_label(shape.label), _geometry(shape), where))
        except UserError as error:
            found.problems.append(f"{path}: {where}: {error}")
    found.items.append(Drawing(str(path), relative_name(path, folder, ".json"), size, shapes))
    found.names = [shape.label for shape in shapes]
    return found


def _size(path: Path, content: _File) -> Size:
    if content.imageWidth is not None and content.imageHeight is not None:
        size = content.imageWidth, content.imageHeight
    elif content.imagePath:
        image = path.parent / content.imagePath.replace("\\", "/")
        try:
            size = image_size(image)
        except UserError as error:
            raise UserError(f"{path}: imageWidth or imageHeight is missing, and {error}; add them") from error
    else:
        raise UserError(f"{path}: imageWidth or imageHeight is missing, and there is no imagePath; add them")
    if problem := size_problem(*size):
        raise UserError(f"{path}: {problem}")
    return size


def _geometry(shape: _Shape) -> Geometry:
    kind = shape.shape_type or "polygon"
    if kind == "mask":
        return _patch(shape.points, shape.mask or "")
    if problem := outline_problem(kind, shape.points):
        raise UserError(problem)
    return Outline(kind, shape.points)


def _patch(points: Sequence[Point], encoded: str) -> Patch:
    """A mask, which is stored as a base64 PNG and extends from the first to the second point."""
    corners = [value for point in points for value in point]
    if len(points) != 2 or (problem := coordinate_problem(corners)):
        raise UserError(problem if len(points) == 2 else f"a mask needs 2 points, not {len(points)}; correct it")
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
            pixels = np.asarray(image.convert("L")) > 0
    except BROKEN_IMAGE as error:
        raise UserError(f"its mask is not a PNG in base64 ({first_line(error)}); draw it again") from error
    left, top, right, bottom = (round(value) for value in corners)
    size = pixels.shape[1], pixels.shape[0]
    # Labelme stores the size of the mask in whole points only: fractions may round to another one.
    if corners == [left, top, right, bottom] and size != (right - left + 1, bottom - top + 1):
        raise UserError(
            f"its mask has {size[0]}×{size[1]} pixels, but its points span {right - left + 1}×{bottom - top + 1}; "
            "draw it again"
        )
    return Patch(left, top, pixels)
