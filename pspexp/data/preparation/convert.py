"""Converts a folder of VOC colour labels to index labels or back: completely or not at all."""

import glob
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from pspexp.data.images import SUFFIXES
from pspexp.data.labels import (
    VOC_COLOURS,
    VOID,
    Labels,
    colours_to_index,
    count_colours,
    open_label,
    palette_colours,
)
from pspexp.errors import UserError
from pspexp.utils.text import count, first_names

# Formats without losses; the results are PNGs.
LABEL_SUFFIXES = (".bmp", ".gif", ".png", ".tif", ".tiff")
_SHOWN_VALUES = 20
_T = TypeVar("_T")
_R = TypeVar("_R")


class Conversion(NamedTuple):
    """The result of `convert_folder`.

    Attributes:
        written: Number of files written.
        kept: Number of files that existed already, with the same labels.
        pixels: File name without suffix → number of pixels of each index, int64 ``[256]``.
    """

    written: int
    kept: int
    pixels: dict[str, npt.NDArray[np.int64]]


class _Result(NamedTuple):
    path: Path
    state: str  # "new", or "same" as or "different" from the file in the output folder
    unknown: dict[str, int]  # description of a value without a class → number of pixels
    error: str  # why the file could not be read
    pixels: npt.NDArray[np.int64]


def convert_folder(
    input_dir: Path,
    output_dir: Path,
    *,
    to_colour: bool = False,
    num_classes: int = 21,
    overwrite: bool = False,
    num_workers: int | None = None,
    show_progress: bool = False,
) -> Conversion:
    """Convert every label in a folder; the output folder changes only if all of them can be converted.

    Palette and RGB labels are converted by colour; 8-bit grey ones contain indices already. The results are index PNGs
    (8-bit grey), or, with ``to_colour``, palette PNGs with VOC's colours, like VOC's own labels.

    Args:
        input_dir: Folder of the labels.
        output_dir: Folder for the results; created if missing.
        to_colour: Whether to write palette PNGs.
        num_classes: Number of classes: indices from 0 to ``num_classes - 1`` and 255 are valid.
        overwrite: Whether to replace files in the output folder that contain other labels.
        num_workers: Number of processes; None means one per core.
        show_progress: Whether to show a progress bar.

    Raises:
        UserError: Lists unreadable files, values without a class, and existing files with other labels.
    """
    if not 1 <= num_classes <= VOID:
        raise UserError(f"num_classes={num_classes}: must be from 1 to {VOID}")
    files = _label_files(input_dir, output_dir)
    with partial_folder(output_dir) as partial_dir:
        work = partial(
            _convert, partial_dir=partial_dir, output_dir=output_dir, to_colour=to_colour, num_classes=num_classes
        )
        pool = in_parallel(work, files, num_workers)
        results = list(track(pool, "Converting labels", total=len(files), disable=not show_progress, transient=True))
        _check(results, output_dir, overwrite)
    kept = sum(result.state == "same" for result in results)
    return Conversion(len(results) - kept, kept, {result.path.stem: result.pixels for result in results})


def to_index(image: Image.Image, num_classes: int) -> tuple[Labels, dict[str, int]]:
    """The indices in a label image.

    Args:
        image: Image of mode P, L or RGB.
        num_classes: Number of classes: indices from 0 to ``num_classes - 1`` and 255 are valid.

    Returns:
        uint8 ``[H, W]``, and the number of pixels of each invalid value, by a description of it.
    """
    pixels = np.asarray(image)
    if image.mode == "L":
        index, rgb = pixels.astype(np.int16), None
    elif image.mode == "P":
        colours = np.zeros((256, 3), np.uint8)
        known = palette_colours(image)[:256]
        colours[: len(known)] = known
        index_of = colours_to_index(colours)
        index_of[len(known) :] = -1
        index, rgb = index_of[pixels], colours[pixels]
    else:
        index, rgb = colours_to_index(pixels), pixels
    wrong = (index < 0) | (index >= num_classes) & (index != VOID)
    if not wrong.any():
        return index.astype(np.uint8), {}
    if rgb is None:
        values, counts = np.unique(pixels[wrong], return_counts=True)
        return pixels, {f"grey value {v}": int(n) for v, n in zip(values, counts, strict=True)}
    return pixels, {f"colour {colour}": count for colour, count in count_colours(rgb[wrong]).items()}


@contextmanager
def partial_folder(output_dir: Path) -> Iterator[Path]:
    """A folder whose files move to ``output_dir`` at the end of the block, or are removed if the block raises.

    Raises:
        UserError: The files cannot be written.
    """
    inside = output_dir if output_dir.is_dir() else output_dir.parent  # files can only be renamed within a file system
    partial_dir = inside / f".{output_dir.name}.{os.getpid()}.partial"
    try:
        remove_leftovers(inside, output_dir.name)
        partial_dir.mkdir(parents=True)
        yield partial_dir
        _publish(partial_dir, output_dir)
    except OSError as error:
        raise UserError(f"{output_dir}: cannot be written ({error}); choose another folder") from error
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the ``.<name>.<process id>.partial`` that killed processes left in a folder."""
    for path in folder.glob(f".{glob.escape(name)}.*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _label_files(input_dir: Path, output_dir: Path) -> list[Path]:
    if not input_dir.is_dir():
        raise UserError(f"{input_dir}: no such folder; give the one that contains the label PNGs")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir}: is a file; give a folder for the converted labels")
    if input_dir.resolve() == output_dir.resolve():
        raise UserError(f"{output_dir}: is both input and output; choose another folder for the output")
    images = sorted(p for p in input_dir.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
    files = [path for path in images if path.suffix.lower() in LABEL_SUFFIXES]
    stems = Counter(path.stem for path in files)
    problems = []
    if repeated := [path.name for path in files if stems[path.stem] > 1]:
        problems.append(
            f"{input_dir}: {listed_files(repeated)} would all become <name>.png; keep one label for each name"
        )
    if others := [path.name for path in images if path.stem not in stems]:
        problems.append(
            f"{input_dir}: {listed_files(others)} cannot be converted: labels are PNG, TIFF, BMP or GIF files; remove "
            "others, or save them as PNG, and not from a JPEG, whose values are no longer exact"
        )
    if not images:
        problems.append(f"{input_dir}: contains no PNG files; give the folder that contains the label PNGs")
    if problems:
        raise UserError(*problems)
    return files


def in_parallel(work: Callable[[_T], _R], items: Sequence[_T], num_workers: int | None) -> Iterator[_R]:
    """The result of each item, in order, computed by that many processes; None means one per core."""
    workers = min(num_workers or available_cores(), len(items))
    if workers <= 1:
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        yield from pool.map(work, items, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _without_palette(image: Image.Image) -> Image.Image:
    """A GIF of grey values as a grey image, since GIFs always have a palette; other images as they are."""
    if image.format != "GIF" or image.mode != "P":
        return image
    colours = palette_colours(image)
    used = colours[[index for index in np.flatnonzero(image.histogram()) if index < len(colours)]]
    is_grey = bool((used == used[:, :1]).all()) and colours_to_index(used).min(initial=0) < 0
    return image.convert("L") if is_grey else image


def _convert(path: Path, *, partial_dir: Path, output_dir: Path, to_colour: bool, num_classes: int) -> _Result:
    nothing = np.zeros(256, np.int64)
    try:
        label, unknown = to_index(_without_palette(open_label(path)), num_classes)
    except UserError as error:
        return _Result(path, "new", {}, str(error), nothing)
    if unknown:
        return _Result(path, "new", unknown, "", nothing)
    image = Image.fromarray(label)
    if to_colour:
        image.putpalette(VOC_COLOURS.tobytes())
    target = output_dir / f"{path.stem}.png"
    state = compare(image, target) if target.exists() else "new"
    if state != "same":
        image.save(partial_dir / target.name)
    return _Result(path, state, {}, "", np.bincount(label.ravel(), minlength=256).astype(np.int64))


def compare(image: Image.Image, path: Path) -> str:
    """``same`` if a file contains the same label in the same kind of image, otherwise ``different``."""
    try:
        existing = open_label(path)
    except UserError:  # e.g. a truncated image
        return "different"
    same = existing.mode == image.mode and existing.size == image.size and existing.tobytes() == image.tobytes()
    return "same" if same and existing.getpalette() == image.getpalette() else "different"


def _check(results: Sequence[_Result], output_dir: Path, overwrite: bool) -> None:
    problems = [result.error for result in results if result.error]
    pixels: Counter[str] = Counter()
    files: dict[str, list[str]] = {}
    for result in results:
        pixels.update(result.unknown)
        for value in result.unknown:
            files.setdefault(value, []).append(result.path.name)
    for value, number in pixels.most_common(_SHOWN_VALUES):
        problems.append(f"{value} is not a class: {count(number, 'pixel')} in {listed_files(files[value])}")
    if len(pixels) > _SHOWN_VALUES:
        rest = sum(pixels.values()) - sum(number for _, number in pixels.most_common(_SHOWN_VALUES))
        problems.append(f"and {len(pixels) - _SHOWN_VALUES} more such values: {rest} pixels")
    different = [result.path.name for result in results if result.state == "different"]
    if different and not overwrite:
        problems.append(
            f"{output_dir}: contains other labels for {listed_files(different)}; remove them or use --overwrite"
        )
    if problems:
        raise UserError(*problems, "nothing was written")


def _publish(partial_dir: Path, output_dir: Path) -> None:
    if not output_dir.exists():
        partial_dir.rename(output_dir)
        return
    for path in sorted(path for path in partial_dir.rglob("*") if path.is_file()):
        target = output_dir / path.relative_to(partial_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def listed_files(names: Sequence[str]) -> str:
    """The number of files and the first names: ``2 files: a.png, b.png``."""
    return f"{count(len(names), 'file')}: {first_names(names)}"
