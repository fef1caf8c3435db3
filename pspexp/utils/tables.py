"""Tables as text: plain, CSV and Markdown."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import chain

from rich.cells import cell_len

PIPED_WIDTH = 120  # columns of a table that is not printed to a terminal
_MARKUP = re.compile(r"[\\|*`]|(?<!\w)_|_(?!\w)")  # an underscore within a word is no markup


def text_table(header: Sequence[str], *blocks: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first aligned left, the others right; a rule above each block of rows.

    Columns are aligned by terminal cells, of which a Chinese character takes two and a combining mark none.
    """
    widths = [max(map(cell_len, column)) for column in zip(header, *chain(*blocks), strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))

    def line(cells: Sequence[str]) -> str:
        fill = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        numbers = (space + cell for space, cell in zip(fill[1:], cells[1:], strict=True))
        return "  ".join([cells[0] + fill[0], *numbers]).rstrip()

    return "\n".join([line(header), *(text for block in blocks for text in (rule, *map(line, block)))])


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
