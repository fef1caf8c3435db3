"""Prints the result and writes it to files."""

import textwrap
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from pspexp.jobs.compare.comparison import Comparison, score
from pspexp.jobs.compare.tables import MAX_LENGTH, Cell, ComparisonTable, comparison_tables
from pspexp.utils.files import write_text_atomic
from pspexp.utils.tables import PIPED_WIDTH, csv_table, escape_markdown, markdown_table
from pspexp.utils.text import shorten_middle

Rows = list[list[object]]

MIN_WIDTH = 80
HEADER_WIDTHS = 10, 20
MAX_ROWS = 40  # per table on the terminal
MAX_OMITTED = 20  # names of columns that are only in the files
STYLES = {"best": "bold", "differs": "magenta", "unfinished": "red"}


def write(result: Comparison, folder: Path, source: str) -> list[str]:
    """Write ``compare.csv``, ``classes.csv``, ``groups.csv``, ``compare.md`` and ``compare.html``; returns the names.

    CSV files without rows are omitted.

    Args:
        result: The comparison.
        folder: Where to write the files.
        source: A description of where the runs come from.
    """
    data = {"compare.csv": run_rows(result), "classes.csv": class_rows(result), "groups.csv": group_rows(result)}
    texts = {name: csv_table(rows) for name, rows in data.items() if len(rows) > 1}
    tables = comparison_tables(result, folder)
    title = f"Comparison of {len(result.runs)} runs"
    about = f"{source}; {datetime.now():%Y-%m-%d %H:%M}"
    texts["compare.md"] = markdown(title, about, tables, result.notes)
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    texts["compare.html"] = page.from_string(template).render(
        title=title, about=about, tables=tables, notes=result.notes
    )
    for name in data.keys() - texts.keys():
        (folder / name).unlink(missing_ok=True)  # from an earlier comparison in this folder
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return list(texts)


def run_rows(result: Comparison) -> Rows:
    """One row per run: full keys and names, fractions; None where undefined."""
    head: list[object] = ["run", "where", "status", "started", *result.keys, *result.metrics]
    rows: Rows = [
        [
            *(run.label, run.where, run.status, datetime.fromtimestamp(run.started_s).isoformat(timespec="seconds")),
            *(run.config.get(key) for key in result.keys),
            *(run.metrics.get(name) for name in result.metrics),
        ]
        for run in result.runs
    ]
    return [head, *rows]


def class_rows(result: Comparison) -> Rows:
    """One row per class: its IoU in each item, then the differences from the baseline; fractions."""
    labels = [item.label for item in result.items]
    head: list[object] = ["class", *labels, *(f"{label} - {labels[0]}" for label in labels[1:])]
    rows: Rows = [[row.name, *row.ious, *row.differences[1:]] for row in result.classes]
    return [head, *rows]


def group_rows(result: Comparison) -> Rows:
    """One row per seed group: mean, standard deviation and number of values of each metric; fractions."""
    head: list[object] = ["group", *(f"{name} {what}" for name in result.metrics for what in ("mean", "std", "n"))]
    rows: Rows = [
        [group.label, *(value for stat in group.stats.values() for value in (stat.mean, stat.std, stat.n))]
        for group in result.groups
    ]
    return [head, *rows]


def markdown(title: str, about: str, tables: Sequence[ComparisonTable], notes: Sequence[str]) -> str:
    """The tables in Markdown."""
    lines = [f"# {escape_markdown(title)}", "", escape_markdown(about)]
    lines += [f"\n> {escape_markdown(note)}" for note in notes]
    for table in tables:
        lines += ["", f"## {escape_markdown(table.title)}", "", escape_markdown(table.caption), ""]
        numbers = [index for index, column in enumerate(table.columns) if column.is_number]
        rows = [[markdown_cell(cell) for cell in row] for row in table.rows]
        lines += markdown_table([escape_markdown(column.header) for column in table.columns], rows, numbers)
    return "\n".join(lines) + "\n"


def markdown_cell(cell: Cell) -> str:
    """A cell; the best of a column is bold."""
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.style == "best" else text


def show(result: Comparison, folder: Path, files: Sequence[str]) -> None:
    """Print the tables, as far as they fit, and the location of the files."""
    console = Console(highlight=False)
    console.width = min(max(console.width, MIN_WIDTH), PIPED_WIDTH) if console.is_terminal else PIPED_WIDTH
    for table in comparison_tables(result, folder):
        printed, omitted = fitting(table, console)
        console.print(Text(table.title, style="bold"))
        console.print(Text(table.caption, style="dim"))
        console.print(printed)
        if any(cell.style == "best" for row in table.rows for cell in row):
            console.print(Text("* best of the column", style="dim"))
        if omitted:
            console.print(Text(f"Only in the files: {', '.join(omitted)}"))
        console.print()
    if score(result.runs[0].metrics, result.split) is not None:
        console.print(Text(f"Best mean IoU: {result.runs[0].where}"), soft_wrap=True)
    for note in result.notes:
        console.print(Text(f"Note: {note}"))
    console.print(Text(f"Written to {folder}: {', '.join(files)}"), soft_wrap=True)


def fitting(table: ComparisonTable, console: Console) -> tuple[Table, list[str]]:
    """A table that fits the console, and what it omits."""
    columns, unbounded = range(len(table.columns)), console.options.update_width(10_000)
    droppable = [index for index in columns if table.columns[index].drop_order]
    droppable.sort(key=lambda index: (table.columns[index].drop_order, index), reverse=True)

    def without(number: int) -> Table:
        dropped = {*droppable[:number]}
        return as_rich_table(table, [index for index in columns if index not in dropped])

    def fits(number: int) -> bool:
        return console.measure(without(number), options=unbounded).maximum <= console.width

    number = bisect_left(range(len(droppable)), True, key=fits)  # one at a time, a thousand runs would take minutes
    omitted = [table.columns[index].header for index in droppable[:number]]
    if len(omitted) > MAX_OMITTED:
        omitted = [*omitted[:MAX_OMITTED], f"{len(omitted) - MAX_OMITTED} more columns"]
    if len(table.rows) > MAX_ROWS:
        omitted.append(f"{len(table.rows) - MAX_ROWS} more rows")
    return without(number), omitted


def as_rich_table(table: ComparisonTable, columns: Sequence[int]) -> Table:
    """Some columns of a table."""
    printed = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index in columns:
        column = table.columns[index]
        justify: JustifyMethod = "right" if column.is_number else "left"
        printed.add_column(Text(wrapped(column.header)), justify=justify, no_wrap=True, vertical="bottom")
    for row in table.rows[:MAX_ROWS]:
        cells = [row[index] for index in columns]
        printed.add_row(*map(terminal_cell, cells))
    return printed


def terminal_cell(cell: Cell) -> Text:
    """A cell; the best of a column is marked, also where nothing is bold."""
    text = shorten_middle(cell.text, MAX_LENGTH)
    return Text(f"* {text}" if cell.style == "best" else text, STYLES.get(cell.style, ""))


def wrapped(header: str) -> str:
    """A header on several short lines; only very long words are broken."""
    words = header.replace(",", ", ")
    low, high = HEADER_WIDTHS
    width = min(max(low, *map(len, words.split())), high)
    return "\n".join(textwrap.wrap(words, width, break_on_hyphens=False))
