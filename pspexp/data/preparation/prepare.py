"""Unpacks, checks and converts a data set in VOC's layout."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.progress import track

from pspexp.data.class_files import read_class_names
from pspexp.data.images import load, orientation
from pspexp.data.labels import VOC_CLASSES, VOID
from pspexp.data.preparation.archive import extract
from pspexp.data.preparation.convert import LABEL_SUFFIXES, available_cores, convert_folder
from pspexp.data.splits import read_lines
from pspexp.data.voc import GREY_LABELS, IMAGES, LABELS, SPLITS
from pspexp.errors import UserError
from pspexp.utils.text import count, first_names

_SHOWN = 20


class Prepared(NamedTuple):
    """A data set that passed all checks.

    Attributes:
        folder: The folder that contains ``JPEGImages``.
        class_names: Class names by label value.
        splits: Sample names of each split.
        pixels: Sample name → number of pixels of each label value, int64 ``[256]``.
        written: Number of grey labels written.
    """

    folder: Path
    class_names: list[str]
    splits: dict[str, list[str]]
    pixels: dict[str, npt.NDArray[np.int64]]
    written: int

    def rows(self) -> list[list[str]]:
        """One row per class: name, then images and pixels of each split; then ignored pixels and totals."""
        names = [*self.class_names, "ignored", "all"]
        columns = [self._columns(split) for split in self.splits]
        return [[name, *(cell for column in columns for cell in column[k])] for k, name in enumerate(names)]

    def _columns(self, split: str) -> list[tuple[str, str]]:
        labelled = [self.pixels[name] for name in self.splits[split] if name in self.pixels]
        counts = np.stack(labelled) if labelled else np.zeros((0, 256), np.int64)
        values = [*range(len(self.class_names)), VOID]
        cells = [(f"{(counts[:, v] > 0).sum():,}", f"{counts[:, v].sum():,}") for v in values]
        return [*cells, (f"{len(counts):,}", f"{counts.sum():,}")]


def prepare(
    source: Path,
    output_dir: Path,
    *,
    overwrite: bool = False,
    num_workers: int | None = None,
    show_progress: bool = False,
) -> list[Prepared]:
    """Unpack an archive, check the data sets in it, and convert their labels to grey ones.

    The results of an earlier, interrupted call are kept.

    Args:
        source: A tar, or an unpacked folder, which is used in place.
        output_dir: Folder to unpack the tar into.
        overwrite: Whether to replace existing files with other contents.
        num_workers: Number of processes; None means one per core.
        show_progress: Whether to show progress bars.

    Raises:
        UserError: Lists everything that is wrong with the archive, the folders, the splits or the labels.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; give a VOC tar or an unpacked folder")
    if source.is_dir():
        places = [source, *sorted(source.iterdir()), *sorted((source / "VOCdevkit").glob("*"))]
        trees = [place for place in places if (place / IMAGES).is_dir()]
    else:
        paths = extract(source, output_dir, overwrite=overwrite, show_progress=show_progress)
        parts = [path.parts[: path.parts.index(IMAGES)] for path in paths if IMAGES in path.parts[:-1]]
        trees = [output_dir.joinpath(*part) for part in sorted(set(parts))]
    if not trees:
        raise UserError(f"{source}: contains no data set (looked for a folder {IMAGES}); give a VOC tar or folder")
    return [_prepare_tree(tree, overwrite, num_workers, show_progress) for tree in trees]


def _prepare_tree(folder: Path, overwrite: bool, num_workers: int | None, show_progress: bool) -> Prepared:
    splits = _check_tree(folder, show_progress)
    names = _class_names(folder)
    conversion = convert_folder(
        folder / LABELS,
        folder / GREY_LABELS,
        num_classes=len(names),
        overwrite=overwrite,
        num_workers=num_workers,
        show_progress=show_progress,
    )
    return Prepared(folder, names, splits, conversion.pixels, conversion.written)


def _class_names(folder: Path) -> list[str]:
    """The class names in ``classes.txt``; without that file, VOC's if the folder's name says that it is VOC."""
    if (folder / "classes.txt").is_file():
        return read_class_names(str(folder))
    if folder.resolve().name.upper().startswith("VOC"):
        return list(VOC_CLASSES)
    return [f"class {index}" for index in range(len(VOC_CLASSES))]


def _check_tree(folder: Path, show_progress: bool) -> dict[str, list[str]]:
    """The splits; raises UserError unless each sample has an image and a label of the same size."""
    problems: list[str] = []
    splits: dict[str, list[str]] = {}
    for path in sorted(file for file in (folder / SPLITS).glob("*.txt") if file.name[0] != "."):
        try:
            splits[path.stem] = _read_split(folder, path.stem, key="split")
        except UserError as error:
            problems += error.problems
    if not splits and not problems:
        problems.append(f"{folder / SPLITS}: contains no split files (train.txt, val.txt); add them")
    images = _files_by_name(folder / IMAGES, (".jpg", ".jpeg", ".png"))
    labels = _files_by_name(folder / LABELS, LABEL_SUFFIXES)
    for split, names in splits.items():
        found = [f"split {split}: {line}" for line in _missing_files("image", names, images, folder / IMAGES)]
        if split != "test" or any(name in labels for name in names):  # VOC 2012's test labels are not public
            found += [f"split {split}: {line}" for line in _missing_files("label", names, labels, folder / LABELS)]
        problems += found
    problems += _check_overlap(folder, splits)
    used = dict.fromkeys(name for names in splits.values() for name in names)
    problems += _check_files([(images[n], labels[n]) for n in used if n in images and n in labels], show_progress)
    if problems:
        raise UserError(*problems)
    return splits


def _check_overlap(folder: Path, splits: dict[str, list[str]]) -> list[str]:
    train, val = set(splits.get("train", ())), set(splits.get("val", ()))
    problems = []
    if train & val:
        both = sorted(train & val)
        problems.append(
            f"{folder / SPLITS}: {count(len(both), 'sample')} in both train and val: {first_names(both)}; "
            "remove each from one of them"
        )
    if {"train", "val", "trainval"} <= splits.keys() and set(splits["trainval"]) != train | val:
        odd = sorted(set(splits["trainval"]) ^ (train | val))
        problems.append(
            f"{folder / SPLITS}: trainval is not the union of train and val: {first_names(odd)}; make the lists agree"
        )
    return problems


def _check_files(pairs: Sequence[tuple[Path, Path]], show_progress: bool) -> list[str]:
    """Decode images and labels whole, and compare their sizes."""
    with ThreadPoolExecutor(available_cores()) as pool:  # decoding does not hold Python's lock
        checked = pool.map(_check_pair, pairs)
        progress = track(checked, "Checking images", total=len(pairs), disable=not show_progress, transient=True)
        problems = [problem for found in progress for problem in found]
    return problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])


def _check_pair(pair: tuple[Path, Path]) -> list[str]:
    problems: list[str] = []
    found = []
    for path in pair:
        try:
            found.append(load(path, "image"))
        except UserError as error:
            problems += error.problems
    if problems:
        return problems
    image, label = found
    turned = image.size[::-1] if orientation(image) >= 5 else image.size  # from landscape to portrait, or back
    if label.size in (image.size, turned):
        return []
    sizes = [f"{one.width}×{one.height}" for one in found]
    return [f"{pair[1]}: {sizes[1]} pixels, but its image has {sizes[0]}; make them equal"]


def _read_split(folder: Path, split: str, key: str) -> list[str]:
    """The lines of ``ImageSets/Segmentation/<split>.txt``.

    Raises:
        UserError: There is no such file, it is empty, or a line occurs twice; the message names ``key``.
    """
    path = folder / SPLITS / f"{split}.txt"
    names = read_lines(path, key, split)
    if repeated := sorted(name for name, number in Counter(names).items() if number > 1):
        raise UserError(f"{key}={split}: {path} lists {first_names(repeated)} more than once; remove the repetitions")
    return names


def _files_by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files with one of the suffixes, except hidden ones, by name without suffix; empty if there is no such folder."""
    if not folder.is_dir():
        return {}
    # Listed at once: a query per file is slow on network drives.
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    return {path.stem: path for path in sorted(files, reverse=True)}  # of a.jpg and a.png, a.jpg


def _missing_files(what: str, names: Iterable[str], files: dict[str, Path], folder: Path) -> list[str]:
    """A line about the names without a file, if there are any."""
    missing = [name for name in names if name not in files]
    if not missing:
        return []
    state = "" if folder.is_dir() else " (no such folder)"
    return [f"{folder}{state}: {count(len(missing), what)} missing: {first_names(missing)}"]
