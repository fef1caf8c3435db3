"""Short forms of text, for messages and tables."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import timedelta
from os import PathLike

from rich.cells import cell_len

GLUE = "\ue000"  # stands for a space at which no line is broken
MAX_NAME = 200  # characters of a name or reason in a message
# What Hydra reads as null, a truth value or a number unless it is quoted.
NOT_TEXT = re.compile(r"null|true|false|[+-]?(?:inf|nan|[\d_]*\.?[\d_]*(?:e[+-]?[\d_]+)?)", re.IGNORECASE)


def wrapped(text: str, width: int, unbroken: Sequence[str] = ()) -> str:
    """``text`` with lines broken between words, those that continue indented; a long word, such as a path, stays whole.

    Lines that begin with a space, such as commands, and those with several spaces in a row, such as rows of tables, are
    left as they are.

    Args:
        text: Lines.
        width: Terminal cells.
        unbroken: Texts that are not broken although they contain spaces.
    """
    for one in sorted(unbroken, key=len, reverse=True):
        text = text.replace(one, one.replace(" ", GLUE))
    return "\n".join(part for line in text.split("\n") for part in _wrapped(line, width)).replace(GLUE, " ")


def _wrapped(line: str, width: int) -> Iterator[str]:
    if cell_len(line) <= width or line.startswith(" ") or "  " in line:
        yield line
        return
    head, *words = line.split(" ")
    for word in words:
        if cell_len(f"{head} {word}") > width:
            yield head
            head = f"  {word}"
        else:
            head += f" {word}"
    yield head


def printable(text: str) -> str:
    """``text`` with escapes for control characters and for bytes that are not text, as in ``a\\nb``."""
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cs") else character for character in text
    )


def shorten(text: str, limit: int, placeholder: str = "…") -> str:
    """``text`` in at most ``limit`` characters; ``placeholder`` stands for what was cut off its end."""
    return text if len(text) <= limit else text[: limit - len(placeholder)] + placeholder


def shorten_middle(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters, cut in the middle: long names often differ at the end."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[len(text) - (limit - 1) // 2 :]}"


def one_line(error: object, limit: int = 300) -> str:
    """A message with its line breaks and runs of spaces collapsed, shortened to ``limit`` characters."""
    return shorten(" ".join(str(error).split()), limit)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, or the name of its class if it has none."""
    return shorten((str(error).strip() or type(error).__name__).split("\n")[0], MAX_NAME)


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """The first ``limit`` names, comma-separated, each shortened and printable, and an ellipsis if there are more."""
    shown = [shorten(printable(name), MAX_NAME) for name in names[:limit]]
    return ", ".join(shown) + (", …" if len(names) > limit else "")


def count(number: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``2 processes``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def quoted(path: str | PathLike[str]) -> str:
    """A path as a value that Hydra reads."""
    text = str(path)
    if re.fullmatch(r"[\w./:-]+", text, re.ASCII) and not NOT_TEXT.fullmatch(text):
        return text
    # Backslashes are literal, except before a quotation mark.
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def duration(seconds: float) -> str:
    """``1:02:03``."""
    return str(timedelta(seconds=round(seconds)))
