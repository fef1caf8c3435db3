"""COCO's instance annotations, drawn by pycocotools."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Discriminator, Tag

from pspexp.data.preparation.annotations.classes import IGNORE, clean_label
from pspexp.data.preparation.annotations.files import image_name, read_json
from pspexp.data.preparation.annotations.items import Drawing, Found, Options, Shape
from pspexp.data.preparation.annotations.shapes import Mask, Point, Size, outline_problem, size_problem
from pspexp.errors import UserError


class _Rle(BaseModel):
    size: tuple[int, int]  # height, width
    counts: list[int] | str


_Polygons = list[list[float]]


class _Annotation(BaseModel):
    id: int | str | None = None
    image_id: int | str
    category_id: int
    iscrowd: bool = False
    segmentation: Annotated[
        Annotated[_Polygons, Tag("polygons")] | Annotated[_Rle, Tag("rle")],
        Discriminator(lambda value: "rle" if isinstance(value, dict) else "polygons"),
    ]


class _Image(BaseModel):
    id: int | str
    file_name: str
    width: int
    height: int


class _Category(BaseModel):
    id: int
    name: str


class _File(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Segmentation(NamedTuple):
    content: _Polygons | dict[str, Any]

    def mask(self, size: Size) -> Mask:
        from pycocotools import mask as coco

        content = self.content
        if isinstance(content, list):
            content = coco.merge(coco.frPyObjects(content, size[1], size[0]))
        elif isinstance(content["counts"], list):
            content = coco.frPyObjects(content, size[1], size[0])
        return np.asarray(coco.decode(content)) > 0


def read_coco(source: Path, options: Options) -> Found:
    """Read an instances file; crowds are ignored areas. See `Found`."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{source}: COCO's masks need pycocotools ({error}); run pip install 'pspexp[labels]'"
        ) from error
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the JSON file with the instances")
    content = read_json(source, _File, "a COCO instances file")
    found, labels = Found(), _categories(source, content)
    found.names = sorted({*labels.values()})
    by_image: dict[int | str, list[tuple[str, _Annotation]]] = defaultdict(list)
    for index, annotation in enumerate(content.annotations):
        where = f"annotations.{index}" + ("" if annotation.id is None else f" (id {annotation.id})")
        by_image[annotation.image_id].append((where, annotation))
    for image in content.images:
        if problem := size_problem(image.width, image.height):
            found.problems.append(f"{source}: image {image.file_name}: {problem}")
            continue
        size, shapes = (image.width, image.height), []
        for where, annotation in by_image[image.id]:
            try:
                shapes.append(_shape(annotation, labels, size, where))
            except UserError as error:
                found.problems.append(f"{source}: {where}: {error}")
        found.items.append(Drawing(str(source), image_name(image.file_name), size, shapes))
    found.problems += _image_problems(source, content, by_image)
    return found


def _categories(source: Path, content: _File) -> dict[int, str]:
    labels: dict[int, str] = {}
    problems = []
    for category in content.categories:
        try:
            label = clean_label(category.name)
        except UserError as error:
            problems.append(f"{source}: category {category.id}: {error}")
            continue
        if labels.setdefault(category.id, label) != label:
            both = f"'{labels[category.id]}' and '{label}'"
            problems.append(f"{source}: category id {category.id} is both {both}; number them differently")
    if problems:
        raise UserError(*problems)
    return labels


def _image_problems(
    source: Path, content: _File, by_image: dict[int | str, list[tuple[str, _Annotation]]]
) -> list[str]:
    ids = {image.id for image in content.images}
    problems = [
        f"{source}: {annotations[0][0]}: image_id {key} is not among the images; add the image or remove it"
        for key, annotations in by_image.items()
        if annotations and key not in ids
    ]
    if len(ids) < len(content.images):
        problems.append(f"{source}: two images have the same id; number them differently")
    if not ids:
        problems.append(f"{source}: contains no images; export it with its images")
    return problems


def _shape(annotation: _Annotation, labels: dict[int, str], size: Size, where: str) -> Shape:
    if annotation.category_id not in labels:
        raise UserError(f"category_id {annotation.category_id} is not among the categories; add it or correct it")
    label = IGNORE if annotation.iscrowd else labels[annotation.category_id]
    segmentation = annotation.segmentation
    if isinstance(segmentation, _Rle):
        if problem := _rle_problem(segmentation, size):
            raise UserError(problem)
        return Shape(label, _Segmentation(segmentation.model_dump()), where)
    if not segmentation:
        raise UserError("has no segmentation (a box only?); add polygons or remove it")
    for polygon in segmentation:
        if len(polygon) % 2:
            raise UserError(f"a polygon of {len(polygon)} numbers: x and y must alternate; correct it")
        if problem := outline_problem("polygon", _points(polygon)):
            raise UserError(problem)
    return Shape(label, _Segmentation(segmentation), where)


def _points(polygon: Sequence[float]) -> list[Point]:
    return list(zip(polygon[::2], polygon[1::2], strict=True))


def _rle_problem(rle: _Rle, size: Size) -> str:
    """Why an RLE does not fit its image. pycocotools fills what is missing with whatever is in memory."""
    if rle.size != (size[1], size[0]):
        return f"its RLE has {rle.size[1]}×{rle.size[0]} pixels, but the image {size[0]}×{size[1]}; make them equal"
    try:
        counts = rle.counts if isinstance(rle.counts, list) else _run_lengths(rle.counts)
    except ValueError:
        return "its RLE is damaged; export it again"
    if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        return f"its RLE has {sum(counts)} pixels, but the image {size[0] * size[1]}; export it again"
    return ""


def _run_lengths(text: str) -> list[int]:
    """The run lengths in COCO's compressed RLE: per character 5 bits, lowest first, and whether more follow.

    From the fourth on, they are differences from the one before the previous one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} is not part of an RLE")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the last run is incomplete")
    return counts
