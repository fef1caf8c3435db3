"""Class names, and the colours of classes, in a data set's folder: ``labelmap.txt`` (CVAT) or ``classes.txt``."""

import re
from pathlib import Path
from typing import Any

from pspexp.data.splits import text_lines
from pspexp.errors import UserError, setting
from pspexp.utils.text import first_names

LABELMAP, CLASSES = "labelmap.txt", "classes.txt"
_LABELMAP_LINE = re.compile(r"(.+?):(\d+),(\d+),(\d+):.*")


def read_class_names(root: str) -> list[str]:
    """The names in ``root/labelmap.txt``, else in ``root/classes.txt``, one per line.

    Raises:
        UserError: There is no such file, or it cannot be read, is empty or contains labelme's placeholders.
    """
    folder = Path(root).expanduser()
    if labelmap := _read_labelmap(folder):
        return [name for name, _ in labelmap]
    path = folder / CLASSES
    try:
        names = text_lines(path)
    except UserError as error:
        raise UserError(
            f"{setting('dataset.class_names')} is not set, and {path} cannot be read ({error}): "
            f"write one class name per line there, or set {setting('dataset.class_names')}=[…]"
        ) from error
    if not names:
        raise UserError(f"{path}: contains no class names; write one per line")
    if names[0] == "__ignore__":
        raise UserError(
            f"{path}: begins with labelme's __ignore__, which is no class; remove that line, so that the first class, "
            "with label value 0, is the background"
        )
    return names


def read_label_values(root: str) -> list[Any] | None:
    """For each class in ``root/labelmap.txt`` its colour and place; None without such a file."""
    labelmap = _read_labelmap(Path(root).expanduser())
    return [[colour, index] for index, (_, colour) in enumerate(labelmap)] if labelmap else None


def _read_labelmap(folder: Path) -> list[tuple[str, str]]:
    """Name and colour of each class; empty without such a file."""
    path = folder / LABELMAP
    if not path.is_file():
        return []
    try:
        lines = [line for line in text_lines(path) if not line.startswith("#")]
    except UserError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    matches = [_LABELMAP_LINE.fullmatch(line) for line in lines]
    wrong = [
        line
        for line, match in zip(lines, matches, strict=True)
        if not match or any(int(part) > 255 for part in match.groups()[1:])
    ]
    if wrong or not lines:
        raise UserError(f"{path}: '{first_names(wrong[:1])}' is not name:r,g,b:parts:actions, as CVAT writes it")
    return [(match[1], f"#{int(match[2]):02x}{int(match[3]):02x}{int(match[4]):02x}") for match in matches if match]
