"""Cityscapes' polygons, drawn as cityscapesScripts draws them."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BaseModel

from pspexp.data.labels import VOID
from pspexp.data.preparation.annotations.classes import IGNORE, Classes
from pspexp.data.preparation.annotations.files import files_below, read_all, read_json, relative_name
from pspexp.data.preparation.annotations.items import Drawing, Found, Options, Shape
from pspexp.data.preparation.annotations.shapes import Mask, Point, Size, outline_problem, size_problem
from pspexp.errors import UserError, did_you_mean

# cityscapesscripts/helpers/labels.py: the names by id, and those with a trainId in its order.
LABELS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
TRAIN_LABELS = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
_SKIPPED = ("license plate",)  # its id is -1
_ENDING = "_polygons.json"


class _Filled(NamedTuple):
    """A polygon without an outline: Pillow may draw one that crosses itself differently."""

    points: list[Point]

    def mask(self, size: Size) -> Mask:
        image = Image.new("L", size)
        ImageDraw.Draw(image).polygon(self.points, fill=1)
        return np.asarray(image) > 0


class _Object(BaseModel):
    label: str
    polygon: list[Point]
    deleted: bool = False


class _File(BaseModel):
    imgWidth: int  # noqa: N815 - Cityscapes' spelling
    imgHeight: int  # noqa: N815
    objects: list[_Object]


def read_cityscapes(source: Path, options: Options) -> Found:
    """Read a folder of ``*_gtFine_polygons.json``, at any depth; the indices are labelIds or trainIds."""
    if options.class_names is not None or not options.background:
        raise UserError("Cityscapes defines its indices: remove --class_names and --no-background")
    read = partial(_read, folder=source, train_ids=options.train_ids)
    found = read_all(read, files_below(source, f"_gtfine{_ENDING}"), options)
    found.classes = Classes(TRAIN_LABELS, VOID) if options.train_ids else Classes(LABELS, 0)
    return found


def _read(path: Path, folder: Path, train_ids: bool) -> Found:
    found, shapes = Found(), []
    try:
        content = read_json(path, _File, "a Cityscapes file")
        if problem := size_problem(content.imgWidth, content.imgHeight):
            raise UserError(f"{path}: {problem}")
    except UserError as error:
        return Found(problems=list(error.problems))
    for index, item in enumerate(content.objects):
        label = _known(item.label)
        if item.deleted or label in _SKIPPED:
            found.ignored += 1
            continue
        problem = outline_problem("polygon", item.polygon)
        if label is None:
            problem = f"label '{item.label}' is not one of Cityscapes'; correct it{did_you_mean(item.label, LABELS)}"
        if problem or label is None:
            found.problems.append(f"{path}: objects.{index}: {problem}")
            continue
        shown = IGNORE if train_ids and label not in TRAIN_LABELS else label
        shapes.append(Shape(shown, _Filled(item.polygon), f"objects.{index}"))
    name = relative_name(path, folder, _ENDING) + ("_labelTrainIds" if train_ids else "_labelIds")
    found.items.append(Drawing(str(path), name, (content.imgWidth, content.imgHeight), shapes))
    return found


def _known(label: str) -> str | None:
    """A label with an id; groups such as ``cargroup`` have that of their members."""
    known = (*LABELS, *_SKIPPED)
    return next((name for name in (label, label.removesuffix("group")) if name in known), None)
