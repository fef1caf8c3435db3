"""Tables as text: CSV and Markdown."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

PIPED_WIDTH = 120  # columns of a table that is not printed to a terminal
_MARKUP = re.compile(r"[\\|*`]|(?<!\w)_|_(?!\w)")  # an underscore within a word is no markup


def csv_table(rows: Iterable[Sequence[object]]) -> str:
    """CSV text, header included; None becomes an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], right_aligned: Iterable[int] = ()
) -> list[str]:
    """The lines of a Markdown table.

    Args:
        header: Titles of the columns, in Markdown.
        rows: Cells, in Markdown; see `escape_markdown`.
        right_aligned: Indices of the columns that hold numbers.
    """
    right = set(right_aligned)
    rule = ["--:" if index in right else ":--" for index in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def escape_markdown(text: str) -> str:
    """Markdown that shows ``text`` literally, on one line."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.splitlines())).replace("<", "&lt;")
