"""Markdown that shows text as it is, whatever signs are in it."""

import re
from collections.abc import Iterable, Sequence

_SIGNS = re.compile(r"[\\|*`]|(?<!\w)_|_(?!\w)")  # an underscore within a word means nothing


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SIGNS.sub(r"\\\g<0>", " ".join(text.splitlines())).replace("<", "&lt;")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> list[str]:
    """The lines of a table.

    Args:
        head: titles of the columns, in Markdown.
        rows: cells, in Markdown.
        numbers: indices of the columns that are set flush right.
    """
    right = set(numbers)
    marks = ["--:" if index in right else ":--" for index in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, marks, *rows)]
