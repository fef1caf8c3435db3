"""The field's data sets as they are downloaded: what to unpack where, and how to find their folders."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pspexp.data.preparation.archive import extract
from pspexp.errors import UserError

_DEPTH = 2  # levels below a given folder that are searched


class Tree(NamedTuple):
    """A folder that downloads unpack to.

    Attributes:
        folders: Each folder that it must contain, with the download that it comes from.
        name: Its name; empty if any folder with these contents will do.
    """

    folders: dict[str, str]
    name: str = ""


class Download(NamedTuple):
    """A data set.

    Attributes:
        trees: Its folders, each with alternatives; the first is the data set's root.
        images: The official number of images of each role.
        unpack_to: Folder below the output folder that archives are unpacked into.
    """

    trees: tuple[tuple[Tree, ...], ...]
    images: dict[str, int]
    unpack_to: str = ""


def _voc(year: int, archive: str) -> Tree:
    return Tree(dict.fromkeys(("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"), archive), f"VOC{year}")


_VOC2012 = _voc(2012, "VOCtrainval_11-May-2012.tar")
# The labels of SBD: .mat or PNG files in the official folder, or PNGs in the one that has become usual.
SBD_LABELS = ("cls", "SegmentationClassAug")
_SBD = tuple(Tree({folder: "benchmark.tgz"}) for folder in SBD_LABELS)
_CITYSCAPES = Tree({"leftImg8bit": "leftImg8bit_trainvaltest.zip", "gtFine": "gtFine_trainvaltest.zip"})
_ADE_FOLDERS = ("images/training", "images/validation", "annotations/training", "annotations/validation")
_ADE20K = Tree(dict.fromkeys(_ADE_FOLDERS, "ADEChallengeData2016.zip"))
_STUFF_MAPS = dict.fromkeys(("annotations/train2017", "annotations/val2017"), "stuffthingmaps_trainval2017.zip")
_COCO = Tree({"images/train2017": "train2017.zip", "images/val2017": "val2017.zip", **_STUFF_MAPS})
_COCO10K = Tree(dict.fromkeys(("images", "annotations", "imageLists"), "cocostuff-10k-v1.1.zip"))

DOWNLOADS = {
    "cityscapes": Download(((_CITYSCAPES,),), {"train": 2975, "val": 500}, "cityscapes"),
    "ade20k": Download(((_ADE20K,),), {"train": 20_210, "val": 2000}),
    "voc2007": Download(((_voc(2007, "VOCtrainval_06-Nov-2007.tar"),),), {"train": 209, "val": 213}),
    "voc2012": Download(((_VOC2012,),), {"train": 1464, "val": 1449}),
    "voc2012_aug": Download(((_VOC2012,), _SBD), {"train": 10_582, "val": 1449}),
    "cocostuff164k": Download(((_COCO,),), {"train": 118_287, "val": 5000}, "cocostuff164k"),
    "cocostuff10k": Download(((_COCO10K,),), {"train": 9000, "val": 1000}, "cocostuff10k"),
}


def unpack(
    name: str, sources: Sequence[Path], output_dir: Path, *, overwrite: bool = False, show_progress: bool = False
) -> list[Path]:
    """Unpack the archives among the downloads of a data set, and find its folders.

    Args:
        name: The data set, one of `DOWNLOADS`.
        sources: Archives, and unpacked folders, which are used in place.
        output_dir: Folder to unpack archives into.
        overwrite: Whether to replace existing files with other contents.
        show_progress: Whether to show progress bars.

    Returns:
        A folder for each of ``trees``.

    Raises:
        UserError: Lists what is wrong with the sources, or what is missing.
    """
    absent = [
        f"{path}: no such file or folder; give an archive or an unpacked folder"
        for path in sources
        if not path.exists()
    ]
    if absent:
        raise UserError(*absent)
    target, problems, places = output_dir / DOWNLOADS[name].unpack_to, list[str](), list[Path]()
    for source in sources:
        if source.is_dir():
            places.append(source)
            continue
        try:
            extract(
                source,
                target,
                overwrite=overwrite,
                show_progress=show_progress,
                place=_place_stuff if name == "cocostuff164k" else _place,
            )
        except UserError as error:
            problems += error.problems
        places.append(target)
    if problems:
        raise UserError(*problems)
    return _find_all(name, list(dict.fromkeys(places)))


def _place(path: PurePosixPath) -> PurePosixPath | None:
    """Top-level files are skipped: several archives of a data set contain a README or a licence of their own."""
    return path if len(path.parts) > 1 else None


def _place_stuff(path: PurePosixPath) -> PurePosixPath | None:
    """COCO's images and the label maps come in folders of the same names."""
    if {"images", "annotations"} & set(path.parts):
        return path
    folder = {".jpg": "images", ".png": "annotations"}.get(path.suffix.lower())
    return PurePosixPath(folder, path) if folder and len(path.parts) > 1 else None


def _find_all(name: str, places: Sequence[Path]) -> list[Path]:
    found, problems = list[Path](), list[str]()
    for alternatives in DOWNLOADS[name].trees:
        # An earlier tree comes last: VOC2012 may contain what was made from the labels of SBD.
        folders = sorted(_folders(places), key=lambda folder: folder in found)
        whole = [
            folder
            for tree in alternatives
            for folder in folders
            if not _missing(folder, tree) and (not tree.name or folder.resolve().name == tree.name or folder in places)
        ]
        if whole:
            found.append(whole[0])
        else:
            problems += _what_is_missing(name, alternatives, folders, places)
    if problems:
        raise UserError(*problems)
    return found


def _folders(places: Sequence[Path]) -> Iterator[Path]:
    """The folders in which the trees are looked for, nearest first."""
    level = list(places)
    for _ in range(_DEPTH + 1):
        yield from level
        level = [child for folder in level for child in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except OSError:  # not readable, or an archive contained nothing to unpack
        return []


def _missing(folder: Path, tree: Tree) -> list[str]:
    return [part for part in tree.folders if not (folder / part).is_dir()]


def _what_is_missing(
    name: str, alternatives: Sequence[Tree], folders: Sequence[Path], places: Sequence[Path]
) -> list[str]:
    """Lines about the folder that contains most of a tree, or about the tree if no folder contains any of it."""
    tree = alternatives[0]
    best = min(folders, key=lambda folder: len(_missing(folder, tree)))
    missing = _missing(best, tree)
    if 0 < len(missing) < len(tree.folders):
        return [f"{best}: contains no {part}; add it from {tree.folders[part]}" for part in missing]
    parts = ", ".join(tree.folders) + "".join(f", or {', '.join(other.folders)}" for other in alternatives[1:])
    named = f" named {tree.name}" if tree.name else ""
    archives = ", ".join(dict.fromkeys(tree.folders.values()))
    looked = ", ".join(map(str, places))
    return [
        f"{name}: no folder{named} in {looked} contains {parts}; give {archives}, or the folder it was unpacked into"
    ]
