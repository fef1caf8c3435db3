"""The images that ``predict.input`` names."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
import numpy.typing as npt

from pspexp.data.band_files import read_bands
from pspexp.data.bands import AnyImage
from pspexp.data.dataset import Role, SegmentationDataset, Split
from pspexp.data.images import SUFFIXES
from pspexp.errors import UserError

SPLIT, LIST = "split:", "@"
# Folders of results, in which no images are searched.
KINDS = ("ids", "labels", "overlay", "colour", "probabilities")


@dataclass(frozen=True)
class Input:
    """An image to predict.

    Attributes:
        image: Its path below the input folder, or its name in a split of the data set.
        name: Path of its results below the output folder, without suffix.
        source: The file, or the index in the split.
    """

    image: str
    name: str
    source: Path | int


class Inputs:
    """The images that an input names, in order.

    Args:
        text: A file, a folder (searched with its subfolders), a glob, ``@list.txt`` or ``split:val``.
        dataset: The data set of ``split:``.
        output: The output folder, whose results are no input.
        key: The key of the input, for messages.

    Raises:
        UserError: It names no images.
    """

    def __init__(self, text: str, dataset: SegmentationDataset, output: Path, key: str = "predict.input") -> None:
        self.where = text if text.startswith(SPLIT) else str(plain(Path(text.removeprefix(LIST)).expanduser()))
        self._max_pixels, self._num_bands = dataset.info.max_image_pixels, dataset.info.num_bands
        self.split: Split | None = None
        if text.startswith(SPLIT):
            self.split = open_split(text, dataset, key)
            self.items = [Input(name, name, index) for index, name in enumerate(self.split.names)]
            return
        root, found = find_files(text, key)
        results = [output.resolve() / kind for kind in KINDS]
        paths = {plain(file): file for file in found}  # each once, without ".."
        files = [
            file for path, file in paths.items() if not any(path.resolve().is_relative_to(folder) for folder in results)
        ]
        if not files:
            raise UserError(f"{key}={text}: no images there; looked for *{', *'.join(SUFFIXES)}")
        images = [plain(file).relative_to(plain(root)).as_posix() for file in files]
        self.items = [Input(*item) for item in zip(images, result_names(images), files, strict=True)]

    def read(self, item: Input) -> tuple[AnyImage, npt.NDArray[np.uint8] | None]:
        """The image, and its label ``[H, W]`` if there is one.

        Raises:
            UserError: It cannot be read.
        """
        if isinstance(item.source, Path):
            return read_bands(item.source, self._num_bands, self._max_pixels), None
        assert self.split is not None
        image, label = self.split[item.source]
        return image, np.asarray(label)


def open_split(text: str, dataset: SegmentationDataset, key: str) -> Split:
    """The split of ``split:val``."""
    role = text.removeprefix(SPLIT)
    for known in get_args(Role):
        if role == known:
            return dataset.open(known)
    raise UserError(f"{key}={text}: no such split; write split:{', split:'.join(get_args(Role))}")


def find_files(text: str, key: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the image files."""
    path = Path(text).expanduser()
    if text.startswith(LIST):
        return listed(Path(text[1:]).expanduser(), f"{key}={text}")
    if path.is_dir():
        return path, images_below(path)
    if path.is_file():
        return path.parent, [path]
    if glob.has_magic(text):
        parts = path.parts
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        root, pattern = Path(*parts[:fixed]), str(Path(*parts[fixed:]))
        return root, [file for file in sorted(root.glob(pattern)) if file.is_file() and is_image(file)]
    raise UserError(f"{key}={text}: no such file or folder (looked for {path.absolute()})")


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, without hidden ones; links that lead back are not followed."""
    found, visited = [], {folder.resolve()}
    for parent, folders, files in os.walk(folder, followlinks=True):
        below = {one: Path(parent, one).resolve() for one in sorted(folders) if one[0] != "."}
        folders[:] = [one for one, place in below.items() if place not in visited]
        visited.update(below.values())
        found += [Path(parent, file) for file in sorted(files) if is_image(Path(file))]
    return found


def listed(file: Path, setting: str) -> tuple[Path, list[Path]]:
    """The files that a text file lists, one per line, relative to its folder or to the working directory."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{setting}: cannot read {file} ({reason}); it must list one image per line") from error
    paths = [Path(line.strip()).expanduser() for line in lines if line.strip()]
    beside = [file.parent / path for path in paths]
    files = [one if one.exists() else path for one, path in zip(beside, paths, strict=True)]
    try:
        return Path(os.path.commonpath([plain(one).parent for one in files])) if files else Path(), files
    except ValueError as error:
        raise UserError(f"{setting}: lists files on several drives; make a list for each") from error


def plain(path: Path) -> Path:
    """An absolute path without ``..``. Links are not followed: results have the names of the links."""
    return Path(os.path.normpath(path.absolute()))


def is_image(file: Path) -> bool:
    """Whether a file's name is that of an image, and not hidden."""
    return file.suffix.lower() in SUFFIXES and file.name[0] != "."


def result_names(images: Sequence[str]) -> list[str]:
    """Paths without their suffixes, which are kept only where names would be equal otherwise."""
    bare = [str(PurePosixPath(image).with_suffix("")) for image in images]
    uses = Counter(bare)
    names = [name if uses[name] == 1 else image for name, image in zip(bare, images, strict=True)]
    return names if len(set(names)) == len(names) else list(images)
