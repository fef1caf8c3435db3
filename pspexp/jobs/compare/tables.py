"""The result as tables for people: percentages with two decimals, ``–`` where undefined."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from pspexp.jobs.compare.comparison import Comparison
from pspexp.jobs.compare.keys import SEED, comparable
from pspexp.jobs.compare.run_set import Run
from pspexp.jobs.compare.seeds import MeanStd, SeedGroup
from pspexp.metrics import percent
from pspexp.utils.text import shorten

UNDEFINED = "–"
MAX_LENGTH = 40  # characters of a configuration value, and of a name on the terminal
HEADERS = {
    "best/mean_iou": "best mean IoU %",
    "best/epoch": "best epoch",
    "mean_iou": "mean IoU %",
    "mean_acc": "mean acc. %",
    "overall_acc": "overall acc. %",
    "freqw_acc": "frequency-weighted IoU %",
    "loss": "loss",
    "mean_dice": "mean Dice %",
}
# Columns that a narrow terminal omits, the largest number first.
DROP_ORDER = {
    "started": 10, "mean_dice": 9, "freqw_acc": 8, "overall_acc": 7, "mean_acc": 6, "loss": 5, "epoch": 4,
    "mean_iou": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: As shown.
        value: The number to sort by.
        style: CSS class: ``best`` in its column, ``differs`` from the baseline, or ``unfinished``.
        intensity: Fraction of the largest difference, -1 to 1; determines the colour.
        link: Relative URL of a folder.
        full_text: The text that ``text`` abbreviates.
    """

    text: str
    value: float | None = None
    style: str = ""
    intensity: float = 0.0
    link: str = ""
    full_text: str = ""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        header: Its title.
        is_number: Right-aligned.
        is_key: Shows a configuration key.
        drop_order: Columns with larger numbers are omitted first where space is short; 0 is never omitted.
    """

    header: str
    is_number: bool = False
    is_key: bool = False
    drop_order: int = 0


@dataclass(frozen=True)
class ComparisonTable:
    """A table with a title and a caption; ``scale`` is the difference shown in the strongest colour, if any."""

    title: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    scale: str = ""


def comparison_tables(result: Comparison, folder: Path) -> list[ComparisonTable]:
    """The tables of runs, seed groups and classes; empty ones are omitted.

    Args:
        result: The comparison.
        folder: The folder that links are relative to.
    """
    tables = [runs_table(result, folder)]
    if result.groups:
        tables.append(seeds_table(result))
    if result.classes:
        tables.append(classes_table(result))
    return tables


def runs_table(result: Comparison, folder: Path) -> ComparisonTable:
    """One row per run."""
    baseline = result.items[0].runs[0] if result.items else result.runs[0]
    best = {name: best_value(name, [run.metrics.get(name) for run in result.runs]) for name in result.metrics}
    columns = [
        Column("run"),
        *(Column(name, is_key=True, drop_order=1) for name in result.keys.values()),
        Column("status", drop_order=2 * all(run.status == "FINISHED" for run in result.runs)),
        *map(metric_column, result.metrics),
        Column("started", drop_order=DROP_ORDER["started"]),
    ]
    rows = [
        [
            Cell(run.label, link="" if run.folder is None else link(run.folder, folder), full_text=run.where),
            *(key_cell(run, baseline, key) for key in result.keys),
            Cell(run.status, style="" if run.status == "FINISHED" else "unfinished"),
            *(metric_cell(name, run.metrics.get(name), best[name]) for name in result.metrics),
            Cell(f"{datetime.fromtimestamp(run.started_s):%Y-%m-%d %H:%M}"),
        ]
        for run in result.runs
    ]
    caption = (
        "Differing configuration values and metrics of each run. Values that differ from those of "
        f"{baseline.label} are highlighted. Only finished runs have metrics."
    )
    return ComparisonTable("Runs", caption, columns, rows)


def link(target: Path, folder: Path) -> str:
    """The relative URL of a folder, seen from another."""
    return quote(os.fsencode(os.path.relpath(target, folder.resolve())))


def seeds_table(result: Comparison) -> ComparisonTable:
    """One row per seed group."""
    keys = {key: name for key, name in result.keys.items() if key != SEED}
    metrics = [name for name in result.metrics if name != "best/epoch"]
    columns = [
        *([Column(name, is_key=True, drop_order=1) for name in keys.values()] or [Column("runs")]),
        Column("n", is_number=True),
        *map(metric_column, metrics),
    ]
    rows = [
        [
            *([key_cell(group.runs[0], group.runs[0], key) for key in keys] or [Cell(group.label)]),
            count_cell(group),
            *(stat_cell(name, group.stats[name]) for name in metrics),
        ]
        for group in result.groups
    ]
    caption = "Mean ± sample standard deviation (n - 1) over runs that differ only in their seed."
    return ComparisonTable("Over seeds", caption, columns, rows)


def classes_table(result: Comparison) -> ComparisonTable:
    """One row per class: IoU and, in parentheses, the difference from the baseline."""
    labels = [item.label for item in result.items]
    columns = [
        Column("class"),
        Column(f"{labels[0]} (baseline)", is_number=True),
        *(Column(label, is_number=True, drop_order=index) for index, label in enumerate(labels[1:])),
    ]
    top = result.classes[0].largest_difference or 0.0
    rows = []
    for row in result.classes:
        cells = [Cell(row.name), Cell(percent(row.ious[0]), row.ious[0])]
        for iou, difference in zip(row.ious[1:], row.differences[1:], strict=True):
            points = "" if difference is None else f" ({100 * difference:+.2f})"
            intensity = difference / top if difference is not None and top else 0.0
            cells.append(Cell(percent(iou) + points, difference, intensity=intensity))
        rows.append(cells)
    caption = (
        "IoU in percent (difference from the baseline in percentage points), largest differences first, from the "
        f"{'last validation' if result.split == 'val' else 'test'}."
    )
    return ComparisonTable(f"Classes ({result.split})", caption, columns, rows, f"{100 * top:.2f}" if top else "")


def metric_column(metric: str) -> Column:
    """The column of a metric."""
    split, _, score = metric.partition("/")
    header = HEADERS[metric] if metric in HEADERS else f"{split} {HEADERS[score]}"
    return Column(header, is_number=True, drop_order=0 if metric == "best/mean_iou" else DROP_ORDER[score])


def best_value(name: str, values: Sequence[float | None]) -> float | None:
    """The best of several values; None if they are all equal."""
    known = [value for value in values if value is not None]
    if len(set(known)) < 2 or name == "best/epoch":
        return None
    return min(known) if name.endswith("/loss") else max(known)


def key_cell(run: Run, baseline: Run, key: str) -> Cell:
    """A configuration value, highlighted if it differs from the baseline's."""
    value = run.config.get(key)
    if value is None:
        return Cell(UNDEFINED)
    try:
        number: float | None = float(value)
    except ValueError:
        number = None
    is_same = key == SEED or comparable(value) == comparable(baseline.config.get(key, ""))
    # Paths differ at their ends.
    text = f"…{value[1 - MAX_LENGTH :]}" if "/" in value and len(value) > MAX_LENGTH else shorten(value, MAX_LENGTH)
    return Cell(text, number, "" if is_same else "differs", full_text=value)


def metric_cell(name: str, value: float | None, best: float | None) -> Cell:
    """A metric, highlighted if it is the best."""
    return Cell(metric_text(name, value), value, "best" if value is not None and value == best else "")


def count_cell(group: SeedGroup) -> Cell:
    """The number of a group's runs that have metrics."""
    count = max((stat.n for stat in group.stats.values()), default=0)
    return Cell(str(count), count)


def stat_cell(name: str, stat: MeanStd) -> Cell:
    """Mean ± standard deviation."""
    text = f"{metric_text(name, stat.mean)} ± {metric_text(name, stat.std)}"
    return Cell(text if stat.n else UNDEFINED, stat.mean)


def metric_text(name: str, value: float | None) -> str:
    """A metric as shown: the epoch as an integer, the loss with four decimals, others in percent."""
    if value is None:
        return UNDEFINED
    if name == "best/epoch":
        return f"{value:.0f}"
    return f"{value:.4f}" if name.endswith("/loss") else percent(value)
