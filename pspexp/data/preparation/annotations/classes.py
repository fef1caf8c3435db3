"""Class names of converted annotations, and the index of each label."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pspexp.data.labels import VOID
from pspexp.errors import UserError, did_you_mean
from pspexp.utils.text import first_names

BACKGROUND, IGNORE = "background", "__ignore__"
_BACKGROUNDS = (BACKGROUND, "_background_")  # labelme's name, too


class Classes(NamedTuple):
    """The classes by index.

    Attributes:
        names: Their names.
        unlabelled: Value of pixels without a label.
    """

    names: Sequence[str]
    unlabelled: int

    def value(self, label: str) -> int | None:
        """The value of a label's pixels; None if it is not a class."""
        if label == IGNORE:
            return VOID
        if label == BACKGROUND:
            return self.unlabelled
        return self.names.index(label) if label in self.names else None


def clean_label(label: str) -> str:
    """A label with single spaces, and with one word for the background.

    Raises:
        UserError: It is empty or contains control characters.
    """
    label = " ".join(label.split())
    if not label or not label.isprintable():
        raise UserError(f"label {label!r} is {'not printable' if label else 'empty'}; correct it")
    return BACKGROUND if label in _BACKGROUNDS else label


def read_names(text: str) -> list[str]:
    """The names in ``--class_names``: a file with one name per line, or names separated by commas.

    Raises:
        UserError: The file cannot be read; a name is empty or occurs twice.
    """
    path = Path(text)
    if "," not in text and (path.is_file() or path.suffix or len(path.parts) > 1):
        return names_in_file(path)
    return _checked(text.split(","), f"--class_names {text}")


def names_in_file(path: Path) -> list[str]:
    """The names in a file, one per line; blank lines and ``__ignore__`` are skipped.

    Raises:
        UserError: The file cannot be read; there are no names, or one occurs twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a file with one class name per line") from error
    return _checked([line for line in lines if line.strip()], str(path))


def _checked(lines: Sequence[str], where: str) -> list[str]:
    try:
        names = [clean_label(line) for line in lines]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated or not names:
        fault = f"{first_names(repeated)} more than once" if repeated else "no names"
        raise UserError(f"{where}: contains {fault}; list each class once")
    return [name for name in names if name != IGNORE]


def ordered_classes(given: Sequence[str] | None, found: Sequence[str], background: bool) -> Classes:
    """The classes, with the background first or not among them.

    Args:
        given: Names in the user's order; None takes those found.
        found: Names in the order of the format.
        background: Whether pixels without a label are a class, with index 0; otherwise they are ignored.

    Raises:
        UserError: There are no names, too many, or the background is at the wrong place.
    """
    names = [name for name in (found if given is None else given) if name not in (BACKGROUND, IGNORE)]
    if given is not None and BACKGROUND in given:
        if not background:
            raise UserError(f"--class_names contains {BACKGROUND}: remove it, or --no-background")
        if given[0] != BACKGROUND:
            raise UserError(f"--class_names: {BACKGROUND} has index 0; list it first, or use --no-background")
    classes = [BACKGROUND, *names] if background else names
    if not classes:
        raise UserError("no labels found: there is no class; give --class_names, or omit --no-background")
    return Classes(check_number(classes), 0 if background else VOID)


def check_number(names: Sequence[str]) -> Sequence[str]:
    """The names, if a label can hold so many; otherwise raises UserError."""
    if len(names) > VOID:
        raise UserError(f"{len(names)} classes: an 8-bit label holds {VOID} at most (255 is ignored); merge some")
    return names


def numbered(names: Sequence[str], highest: int) -> list[str]:
    """``names``, or without any, a name for each class from 0 to ``highest``."""
    return list(names) or [f"class {k}" for k in range(highest + 1)]


def unknown_label(label: str, names: Iterable[str], where: str) -> str:
    """The problem that a label is not a class."""
    return f"label '{label}' is not a class: {where}; correct it or add it to --class_names{did_you_mean(label, names)}"
