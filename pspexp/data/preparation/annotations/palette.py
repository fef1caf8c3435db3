"""Index PNGs, to be shown in VOC's colours."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pspexp.data.labels import VOID, Labels, open_label
from pspexp.data.preparation.annotations.classes import Classes, check_number, names_in_file, numbered
from pspexp.data.preparation.annotations.files import files_below, read_all, relative_name
from pspexp.data.preparation.annotations.items import Found, Options, Overlap
from pspexp.errors import UserError

_NAMES = "classes.txt"


class _IndexLabel(NamedTuple):
    source: str
    name: str

    def labels(self) -> Iterable[str]:
        return ()

    def render(self, classes: Classes, overlap: Overlap) -> tuple[Labels, str]:
        """See `pspexp.data.preparation.annotations.items.Item`."""
        return _indices(Path(self.source)), ""


def read_palette(source: Path, options: Options) -> Found:
    """Read a folder of index PNGs, at any depth, and its ``classes.txt``. See `Found`."""
    if not options.background:
        raise UserError("--no-background: palette PNGs have the indices of the index PNGs; remove it")
    names = options.class_names
    if names is None:
        names = names_in_file(source / _NAMES) if (source / _NAMES).is_file() else []
    files = files_below(source, ".png")
    found = read_all(partial(_read, folder=source, names=names), files, options)
    found.classes = Classes(check_number(numbered(names, max(map(int, found.names), default=0))), VOID)
    return found


def _read(path: Path, folder: Path, names: list[str]) -> Found:
    try:
        values = np.unique(_indices(path))
    except UserError as error:
        return Found(problems=list(error.problems))
    highest = max((int(value) for value in values if value != VOID), default=0)
    if names and highest >= len(names):
        return Found(problems=[f"{path}: index {highest}, but there are {len(names)} classes; correct it or {_NAMES}"])
    return Found([_IndexLabel(str(path), relative_name(path, folder, path.suffix))], [str(highest)])


def _indices(path: Path) -> Labels:
    image = open_label(path)
    if image.mode == "RGB":
        raise UserError(f"{path}: is RGB, not an index PNG; convert it with tools/convert_voc_label.py first")
    return np.asarray(image)
