"""The result on the terminal and as files."""

import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pspexp.jobs.compare.comparison import Comparison
from pspexp.jobs.compare.tables import LONGEST, Cell, Sheet, sheets
from pspexp.utils.files import write_text_atomic
from pspexp.utils.tables import csv_table, escape_markdown, markdown_table

Rows = list[list[object]]

NARROW, WIDE = 80, 120  # columns of a terminal; what is piped somewhere else may be wide
HEADER_WIDTHS = 10, 20
MAX_ROWS = 40  # of a table on the terminal
STYLES = {"best": "bold", "differs": "magenta", "unfinished": "red"}


def write(result: Comparison, folder: Path, source: str) -> list[str]:
    """Write ``compare.csv``, ``classes.csv``, ``groups.csv``, ``compare.md`` and ``compare.html``; returns the names.

    Tables without a row are left out.

    Args:
        result: of the comparison.
        folder: of the files.
        source: where the runs come from, for people.
    """
    tables = {"compare.csv": run_rows(result), "classes.csv": class_rows(result), "groups.csv": group_rows(result)}
    texts = {name: csv_table(rows) for name, rows in tables.items() if len(rows) > 1}
    found = sheets(result, folder)
    title = f"Comparison of {len(result.runs)} runs"
    about = f"{source}; {datetime.now():%Y-%m-%d %H:%M}"
    texts["compare.md"] = markdown(title, about, found, result.notes)
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(template).render(title=title, about=about, sheets=found, notes=result.notes)
    texts["compare.html"] = html
    for name in tables.keys() - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier comparison in this folder
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return list(texts)


def run_rows(result: Comparison) -> Rows:
    """One row a run: whole keys and names, fractions; None where undefined."""
    head: list[object] = ["run", "where", "status", "started", *result.keys, *result.metrics]
    rows: Rows = [
        [
            *(name, run.where, run.status, datetime.fromtimestamp(run.started_s).isoformat(timespec="seconds")),
            *(run.config.get(key) for key in result.keys),
            *(run.metrics.get(name) for name in result.metrics),
        ]
        for run, name in zip(result.runs, result.labels, strict=True)
    ]
    return [head, *rows]


def class_rows(result: Comparison) -> Rows:
    """One row a class: its IoU in each run or group, then the differences to the first of them; fractions."""
    labels = [unit.label for unit in result.units]
    head: list[object] = ["class", *labels, *(f"{label} - {labels[0]}" for label in labels[1:])]
    rows: Rows = [[row.name, *row.ious, *row.differences[1:]] for row in result.classes]
    return [head, *rows]


def group_rows(result: Comparison) -> Rows:
    """One row a group: mean, standard deviation and number of values of each metric; fractions."""
    head: list[object] = ["group", *(f"{name} {what}" for name in result.metrics for what in ("mean", "std", "n"))]
    rows: Rows = [
        [group.label, *(value for one in group.stats.values() for value in (one.mean, one.std, one.n))]
        for group in result.groups
    ]
    return [head, *rows]


def markdown(title: str, about: str, found: Sequence[Sheet], notes: Sequence[str]) -> str:
    """The tables in Markdown."""
    lines = [
        f"# {escape_markdown(title)}",
        "",
        escape_markdown(about),
        *(f"\n> {escape_markdown(note)}" for note in notes),
    ]
    for sheet in found:
        lines += ["", f"## {escape_markdown(sheet.title)}", "", escape_markdown(sheet.about), ""]
        numbers = [index for index, column in enumerate(sheet.columns) if column.is_number]
        rows = [[markdown_cell(cell) for cell in row] for row in sheet.rows]
        lines += markdown_table([escape_markdown(column.header) for column in sheet.columns], rows, numbers)
    return "\n".join(lines) + "\n"


def markdown_cell(cell: Cell) -> str:
    """A cell; the best of a column is bold."""
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.mark == "best" else text


def show(result: Comparison, folder: Path, files: Sequence[str]) -> None:
    """Print the tables, as far as they fit, and where the files are."""
    console = Console(highlight=False)
    console.width = min(max(console.width, NARROW), WIDE) if console.is_terminal else WIDE
    for sheet in sheets(result, folder):
        table, without = fitting(sheet, console)
        console.print(Text(sheet.title, style="bold"))
        console.print(Text(sheet.about, style="dim"))
        console.print(table)
        if without:
            console.print(Text(f"Not shown here, but in the files: {', '.join(without)}"))
        console.print()
    for note in result.notes:
        console.print(Text(f"Note: {note}"))
    console.print(Text(f"Written to {folder}: {', '.join(files)}"), soft_wrap=True)


def fitting(sheet: Sheet, console: Console) -> tuple[Table, list[str]]:
    """A table no wider than the console, and what it does without."""
    chosen, without = list(range(len(sheet.columns))), []
    table = as_table(sheet, chosen)
    unbounded = console.options.update_width(10_000)
    while console.measure(table, options=unbounded).maximum > console.width:
        spare = max(reversed(chosen), key=lambda index: sheet.columns[index].spare)
        if not sheet.columns[spare].spare:
            break
        chosen.remove(spare)
        without.append(sheet.columns[spare].header)
        table = as_table(sheet, chosen)
    if len(sheet.rows) > MAX_ROWS:
        without.append(f"{len(sheet.rows) - MAX_ROWS} more rows")
    return table, without


def as_table(sheet: Sheet, chosen: Sequence[int]) -> Table:
    """Some columns of a sheet."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index in chosen:
        column = sheet.columns[index]
        title = header_lines(column.header)
        table.add_column(Text(title), justify="right" if column.is_number else "left", no_wrap=True, vertical="bottom")
    for row in sheet.rows[:MAX_ROWS]:
        table.add_row(*(Text(fitted(row[index].text), style=STYLES.get(row[index].mark, "")) for index in chosen))
    return table


def fitted(text: str) -> str:
    """A cell's text, with its middle left out where it is long: names tend to differ at their ends."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def header_lines(header: str) -> str:
    """A header of several short lines, broken within words only where they are very long."""
    words = header.replace(",", ", ")
    low, high = HEADER_WIDTHS
    width = min(max(low, *map(len, words.split())), high)
    return "\n".join(textwrap.wrap(words, width, break_on_hyphens=False))
