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
from PIL import Image

from pspexp.data.dataset import Role, SegmentationDataset, Split
from pspexp.data.images import SUFFIXES, read_image
from pspexp.errors import UserError

SPLIT, LIST = "split:", "@"


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
        output: The output folder, in which no images are searched.

    Raises:
        UserError: It names no images.
    """

    def __init__(self, text: str, dataset: SegmentationDataset, output: Path) -> None:
        self._max_pixels = dataset.info.max_image_pixels
        self.split: Split | None = None
        if text.startswith(SPLIT):
            self.split = open_split(text, dataset)
            self.items = [Input(name, name, index) for index, name in enumerate(self.split.names)]
            return
        root, files = find_files(text, output.resolve())
        if not files:
            raise UserError(f"predict.input={text}: no images there; looked for *{', *'.join(SUFFIXES)}")
        images = [file.absolute().relative_to(root.absolute()).as_posix() for file in files]
        self.items = [Input(*item) for item in zip(images, result_names(images), files, strict=True)]

    def read(self, item: Input) -> tuple[Image.Image, npt.NDArray[np.uint8] | None]:
        """The RGB image, and its label ``[H, W]`` if there is one.

        Raises:
            UserError: It cannot be read.
        """
        if isinstance(item.source, Path):
            return read_image(item.source, self._max_pixels), None
        assert self.split is not None
        image, label = self.split[item.source]
        return image, np.asarray(label)


def open_split(text: str, dataset: SegmentationDataset) -> Split:
    """The split of ``split:val``."""
    role = text.removeprefix(SPLIT)
    for known in get_args(Role):
        if role == known:
            return dataset.open(known)
    raise UserError(f"predict.input={text}: no such split; write split:{', split:'.join(get_args(Role))}")


def find_files(text: str, output: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the image files."""
    path = Path(text).expanduser()
    if text.startswith(LIST):
        return listed(Path(text[1:]).expanduser(), text)
    if path.is_dir():
        return path, images_below(path, output)
    if path.is_file():
        return path.parent, [path]
    if glob.has_magic(text):
        parts = path.parts
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        root, pattern = Path(*parts[:fixed]), str(Path(*parts[fixed:]))
        return root, [file for file in sorted(root.glob(pattern)) if file.is_file() and is_image(file)]
    raise UserError(f"predict.input={text}: no such file or folder (looked for {path.absolute()})")


def images_below(folder: Path, output: Path) -> list[Path]:
    """The image files in a folder and its subfolders, without hidden ones and those in ``output``."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(one for one in folders if one[0] != "." and Path(parent, one).resolve() != output)
        found += [Path(parent, file) for file in sorted(files) if file[0] != "." and is_image(Path(file))]
    return found


def listed(file: Path, text: str) -> tuple[Path, list[Path]]:
    """The files that a text file lists, one per line, relative to its folder or to the working directory."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"predict.input={text}: cannot read {file} ({error})") from error
    paths = [Path(line.strip()).expanduser() for line in lines if line.strip()]
    beside = [file.parent / path for path in paths]
    files = [one if one.exists() else path for one, path in zip(beside, paths, strict=True)]
    return Path(os.path.commonpath([one.absolute().parent for one in files])) if files else Path(), files


def is_image(file: Path) -> bool:
    """Whether a file's name has the suffix of an image."""
    return file.suffix.lower() in SUFFIXES


def result_names(images: Sequence[str]) -> list[str]:
    """Paths without their suffixes, which are kept only where names would be equal otherwise."""
    bare = [str(PurePosixPath(image).with_suffix("")) for image in images]
    uses = Counter(bare)
    return [name if uses[name] == 1 else image for name, image in zip(bare, images, strict=True)]
