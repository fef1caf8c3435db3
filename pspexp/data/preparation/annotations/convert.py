"""Converts annotations of many formats to label PNGs: completely or not at all."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from pspexp.data.labels import VOC_COLOURS, VOID
from pspexp.data.preparation.annotations.cityscapes import read_cityscapes
from pspexp.data.preparation.annotations.classes import Classes, ordered_classes, unknown_label
from pspexp.data.preparation.annotations.coco import read_coco
from pspexp.data.preparation.annotations.cvat import read_cvat
from pspexp.data.preparation.annotations.items import Found, Item, Options, Overlap
from pspexp.data.preparation.annotations.labelme import read_labelme
from pspexp.data.preparation.annotations.palette import read_palette
from pspexp.data.preparation.annotations.yolo import read_yolo
from pspexp.data.preparation.convert import compare, in_parallel, listed_files, partial_folder
from pspexp.errors import UserError
from pspexp.utils.files import write_text_atomic
from pspexp.utils.text import count

FORMATS: dict[str, Callable[[Path, Options], Found]] = {
    "labelme": read_labelme,
    "coco": read_coco,
    "cvat": read_cvat,
    "yolo": read_yolo,
    "cityscapes": read_cityscapes,
    "palette": read_palette,
}
NAMES_FILE = "classes.txt"
_SHOWN = 200


class Converted(NamedTuple):
    """The result of `convert_annotations`.

    Attributes:
        written: Number of labels written.
        kept: Number of labels that existed already, with the same pixels.
        ignored: Number of shapes that the format's rules ignore.
        class_names: Names of the classes by index.
        images: Number of labels that contain each value, int64 ``[256]``.
        pixels: Number of pixels of each value, int64 ``[256]``.
        warnings: Shapes that cover no pixel, one line per image.
    """

    written: int
    kept: int
    ignored: int
    class_names: Sequence[str]
    images: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.int64]
    warnings: list[str]

    def rows(self) -> list[list[str]]:
        """One row per class: index, name, images and pixels; then ignored pixels and totals."""
        values = [*range(len(self.class_names)), VOID]
        names = [*self.class_names, "ignored"]
        rows = [
            [str(v), name, f"{self.images[v]:,}", f"{self.pixels[v]:,}"] for v, name in zip(values, names, strict=True)
        ]
        return [*rows, ["", "all", f"{self.written + self.kept:,}", f"{self.pixels.sum():,}"]]


class _Result(NamedTuple):
    file: str
    state: str  # "new", or "same" as or "different" from the file in the output folder
    problems: Sequence[str]
    warning: str
    pixels: npt.NDArray[np.int64]


def convert_annotations(format_name: str, source: Path, output_dir: Path, options: Options) -> Converted:
    """Convert annotations to index PNGs (8-bit grey) or palette PNGs; 255 is ignored.

    The output folder changes only if everything can be converted.

    Args:
        format_name: One of `FORMATS`.
        source: The annotations.
        output_dir: Folder for the labels and ``classes.txt``; created if missing.
        options: See `Options`.

    Raises:
        UserError: Lists everything that is wrong with the options, the annotations and the files in the output folder.
    """
    _check_options(format_name, source, output_dir, options)
    if format_name == "palette":
        options = replace(options, palette=True)
    found = FORMATS[format_name](source, options)
    items, problems = _named_apart(found.items, output_dir)
    problems = [*found.problems, *problems]
    classes = found.classes
    if classes is None:
        try:
            classes = ordered_classes(options.class_names, found.names, options.background)
        except UserError as error:
            raise _failed([*problems, *error.problems]) from error
    problems += _unknown_labels(items, classes)
    with partial_folder(output_dir) as partial_dir:
        results = _draw(items, classes, partial_dir, output_dir, options)
        problems += [problem for result in results for problem in result.problems]
        different = [result.file for result in results if result.state == "different"]
        different += _write_names(classes, partial_dir, output_dir)
        if different and not options.overwrite:
            there = listed_files(different)
            problems.append(f"{output_dir}: contains other results in {there}; remove them or use --overwrite")
        if problems:
            raise _failed(problems)
    return _summary(results, found.ignored, classes)


def _check_options(format_name: str, source: Path, output_dir: Path, options: Options) -> None:
    problems = []
    if options.images is not None and format_name != "yolo":
        problems.append("--images is for yolo only: the other formats contain the sizes; remove it")
    if options.train_ids and format_name != "cityscapes":
        problems.append("--train_ids is for cityscapes only; remove it")
    if output_dir.exists() and not output_dir.is_dir():
        problems.append(f"{output_dir}: is a file; give a folder for the labels")
    if not source.exists():
        problems.append(f"{source}: no such file or folder; give the annotations")
    target = output_dir.resolve()
    # Images would be replaced, or labels read by the next call.
    for folder in filter(None, (source, options.images)):
        if folder.resolve() in (target, *(target.parents if format_name == "palette" else ())):
            problems.append(f"{output_dir}: is in {folder}, which is read; choose another folder for the output")
    if problems:
        raise UserError(*problems)


def _failed(problems: Sequence[str]) -> UserError:
    more = [f"and {len(problems) - _SHOWN} more problems"] if len(problems) > _SHOWN else []
    return UserError(*problems[:_SHOWN], *more, "nothing was written")


def _named_apart(items: Sequence[Item], output_dir: Path) -> tuple[list[Item], list[str]]:
    """The items whose files can be written, and the problems of the others."""
    by_name: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_name[item.name].append(item)
    good, problems = [], []
    for name, same in by_name.items():
        path, target = PurePosixPath(name), output_dir / f"{name}.png"
        sources = ", ".join(dict.fromkeys(item.source for item in same))
        if not path.name or path.is_absolute() or ".." in path.parts or not name.isprintable():
            problems.append(f"{sources}: image name {name!r} is no path within a folder; correct it")
        elif len(same) > 1:
            problems.append(f"{sources}: {len(same)} images would become {name}.png; rename all but one")
        elif Path(sources).suffix == ".png" and Path(sources).resolve() == target.resolve():
            problems.append(f"{target}: would replace the file that it is made from; choose another --output_dir")
        else:
            good.append(same[0])
    return good, problems


def _unknown_labels(items: Sequence[Item], classes: Classes) -> list[str]:
    shapes: dict[str, int] = defaultdict(int)
    files: dict[str, dict[str, None]] = defaultdict(dict)
    for item in items:
        for label in item.labels():
            shapes[label] += 1
            files[label][item.source] = None
    return [
        unknown_label(label, classes.names, f"{count(number, 'shape')} in {listed_files(list(files[label]))}")
        for label, number in sorted(shapes.items())
        if classes.value(label) is None
    ]


def _draw(
    items: Sequence[Item], classes: Classes, partial_dir: Path, output_dir: Path, options: Options
) -> list[_Result]:
    work = partial(
        _write,
        partial_dir=partial_dir,
        output_dir=output_dir,
        classes=classes,
        overlap=options.overlap,
        palette=options.palette,
    )
    pool = in_parallel(work, items, options.num_workers)
    hidden = not options.show_progress
    return list(track(pool, "Drawing labels", total=len(items), disable=hidden, transient=True))


def _write(
    item: Item, *, partial_dir: Path, output_dir: Path, classes: Classes, overlap: Overlap, palette: bool
) -> _Result:
    file = f"{item.name}.png"
    try:
        pixels, warning = item.render(classes, overlap)
    except UserError as error:
        return _Result(file, "new", error.problems, "", np.zeros(256, np.int64))
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(VOC_COLOURS.tobytes())
    target = output_dir / file
    state = compare(image, target) if target.exists() else "new"
    if state != "same":
        path = partial_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            image.save(stream, "PNG")
            stream.flush()
            os.fsync(stream.fileno())
    return _Result(file, state, (), warning, np.bincount(pixels.ravel(), minlength=256).astype(np.int64))


def _write_names(classes: Classes, partial_dir: Path, output_dir: Path) -> list[str]:
    """Write the names of the classes; returns their file if the output folder contains others."""
    target, text = output_dir / NAMES_FILE, "".join(f"{name}\n" for name in classes.names)
    if target.exists() and target.read_bytes() == text.encode():
        return []
    write_text_atomic(partial_dir / NAMES_FILE, text)
    return [NAMES_FILE] if target.exists() else []


def _summary(results: Sequence[_Result], ignored: int, classes: Classes) -> Converted:
    counts = np.stack([result.pixels for result in results])
    kept = sum(result.state == "same" for result in results)
    return Converted(
        len(results) - kept,
        kept,
        ignored,
        classes.names,
        np.count_nonzero(counts, axis=0).astype(np.int64),
        counts.sum(0),
        [result.warning for result in results if result.warning],
    )
