"""YOLO's segmentation files: a line per polygon, with a class number and coordinates as fractions of the image."""

from collections import defaultdict
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pspexp.data.preparation.annotations.classes import BACKGROUND, clean_label, numbered
from pspexp.data.preparation.annotations.files import (
    files_below,
    image_size,
    image_suffixes,
    read_all,
    read_bytes,
    relative_name,
)
from pspexp.data.preparation.annotations.items import Drawing, Found, Options, Shape
from pspexp.data.preparation.annotations.shapes import Outline, Size, outline_problem, size_problem
from pspexp.data.preparation.convert import listed_files
from pspexp.errors import UserError
from pspexp.utils.text import count, first_line, shorten

_YAML = "data.yaml"


def read_yolo(source: Path, options: Options) -> Found:
    """Read a folder of text files, at any depth; class k of the files is the k-th name. See `Found`."""
    if options.images is None or not options.images.is_dir():
        raise UserError(f"--images {options.images}: no such folder; YOLO's files need the images, for their sizes")
    files = [path for path in files_below(source, ".txt") if path.name != "classes.txt"]
    names, declared = _names(source, options)
    images: dict[str, list[Path]] = {}
    for path in sorted(options.images.rglob("*")):
        if path.suffix.lower() in image_suffixes() and path.name[0] != ".":
            images.setdefault(relative_name(path, options.images, path.suffix), []).append(path)
    pairs = [(path, images.get(relative_name(path, source, path.suffix), [])) for path in files]
    found = read_all(partial(_read, folder=source, image_dir=options.images), pairs, options)
    names = names or dict(enumerate(numbered([], max(map(int, found.names), default=-1))))
    unnamed: dict[int, list[str]] = defaultdict(list)
    for item in found.items:
        assert isinstance(item, Drawing)
        for shape in item.shapes:
            if int(shape.label) not in names:
                unnamed[int(shape.label)].append(item.source)
        item.shapes[:] = [s._replace(label=names[int(s.label)]) for s in item.shapes if int(s.label) in names]
    for number, sources in sorted(unnamed.items()):
        places = f"{count(len(sources), 'shape')} in {listed_files(list(dict.fromkeys(sources)))}"
        found.problems.append(f"class {number} has no name in {declared}: {places}; add it there or correct them")
    found.names = list(dict.fromkeys(names.values()))
    return found


def _names(source: Path, options: Options) -> tuple[dict[int, str], str]:
    """Names by class number, and where they come from; none if there is no ``data.yaml`` and no ``--class_names``."""
    for folder in (source, source.absolute().parent, source.absolute().parent.parent):
        if (folder / _YAML).is_file():
            return _yaml_names(folder / _YAML), str(folder / _YAML)
    given = options.class_names or []
    return dict(enumerate(name for name in given if name != BACKGROUND)), "--class_names"


def _yaml_names(path: Path) -> dict[int, str]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        names = content["names"] if isinstance(content, dict) else None
        pairs = names.items() if isinstance(names, dict) else enumerate(names or [])
        return {int(number): clean_label(str(name)) for number, name in pairs}
    except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path}: its names cannot be read ({first_line(error)}); write names: [a, b] or {{0: a, 1: b}}"
        ) from error


def _read(pair: tuple[Path, list[Path]], folder: Path, image_dir: Path) -> Found:
    path, images = pair
    name, found = relative_name(path, folder, path.suffix), Found()
    try:
        size = _size(images, f"{path}: {image_dir}", name)
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UserError as error:
        return Found(problems=list(error.problems))
    except UnicodeDecodeError:
        return Found(problems=[f"{path}: not UTF-8 text; export it again"])
    shapes = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            shapes.append(_shape(line.split(), size, f"line {number}"))
        except UserError as error:
            found.problems.append(f"{path}: line {number}: {error}")
    found.items.append(Drawing(str(path), name, size, shapes))
    found.names = [shape.label for shape in shapes]
    return found


def _size(images: list[Path], where: str, name: str) -> Size:
    if len(images) != 1:
        state = "contains several images" if images else "contains no image"
        raise UserError(f"{where} {state} {name}.*; there must be one")
    size = image_size(images[0])
    if problem := size_problem(*size):
        raise UserError(f"{images[0]}: {problem}")
    return size


def _shape(words: list[str], size: Size, where: str) -> Shape:
    try:
        number, values = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise UserError(f"'{shorten(' '.join(words), 60)}' is not a class number and numbers; correct it") from error
    if number < 0:
        raise UserError(f"class {number} is negative; correct it")
    if len(values) == 4:
        raise UserError("4 numbers are a box, no polygon; use the segmentation export")
    if len(values) % 2:
        raise UserError(f"{len(values)} numbers: x and y must alternate; correct it")
    if outside := [value for value in values if value < -0.5 or value > 1.5]:
        raise UserError(
            f"{outside[0]:g} is no fraction of the image's width or height, from 0 to 1; export it normalised"
        )
    # Rounded: Pillow truncates coordinates, and 0.29 × 100 is 28.999….
    points = [(round(x * size[0], 6), round(y * size[1], 6)) for x, y in zip(values[::2], values[1::2], strict=True)]
    if problem := outline_problem("polygon", points):
        raise UserError(problem)
    return Shape(str(number), Outline("polygon", points), where)
