"""The result as tables for people: percent with two decimals, ``–`` where undefined."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from pspexp.jobs.compare.comparison import Comparison
from pspexp.jobs.compare.keys import SEED, comparable
from pspexp.jobs.compare.run_set import Run
from pspexp.jobs.compare.seeds import Group, Stat
from pspexp.metrics import percent

UNDEFINED = "–"
LONGEST = 40  # characters of a configuration value, and of a name on the terminal
HEADERS = {
    "best/mean_iou": "best mean IoU %",
    "best/epoch": "best epoch",
    "mean_iou": "mean IoU %",
    "mean_acc": "mean acc. %",
    "overall_acc": "overall acc. %",
    "freqw_acc": "freq. acc. %",
    "loss": "loss",
}
# What a narrow terminal does without: the largest number goes first.
LESS_NEEDED = {"started": 9, "freqw_acc": 8, "overall_acc": 7, "mean_acc": 6, "loss": 5, "mean_iou": 3, "epoch": 4}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: as shown.
        value: to sort by, if it is a number.
        mark: a CSS class: ``best`` of a column, ``differs`` from the baseline.
        share: of the largest difference, -1 to 1; colours the cell.
        link: a relative URL of a folder.
        whole: the text that ``text`` shortens.
    """

    text: str
    value: float | None = None
    mark: str = ""
    share: float = 0.0
    link: str = ""
    whole: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        header: its title.
        is_number: aligned to the right.
        is_key: tells a part of the configuration.
        spare: how well one does without; 0 always stays.
    """

    header: str
    is_number: bool = False
    is_key: bool = False
    spare: int = 0


@dataclass(frozen=True)
class Sheet:
    """A table with a title and a line about how to read it; ``scale``: what a full colour means, if cells have any."""

    title: str
    about: str
    columns: list[Column]
    rows: list[list[Cell]]
    scale: str = ""


def sheets(result: Comparison, folder: Path) -> list[Sheet]:
    """The tables of a comparison: runs, groups over seeds where there are any, classes.

    Args:
        result: of the comparison.
        folder: from which links start.
    """
    found = [runs_sheet(result, folder)]
    if result.groups:
        found.append(seeds_sheet(result))
    if result.classes:
        found.append(classes_sheet(result))
    return found


def runs_sheet(result: Comparison, folder: Path) -> Sheet:
    """One row a run."""
    baseline = result.units[0].runs[0] if result.units else result.runs[0]
    best = {name: best_value(name, [run.metrics.get(name) for run in result.runs]) for name in result.metrics}
    columns = [
        Column("run"),
        *(Column(short, is_key=True, spare=1) for short in result.keys.values()),
        Column("status", spare=2 * all(run.status == "FINISHED" for run in result.runs)),
        *(Column(header(name), is_number=True, spare=spare(name)) for name in result.metrics),
        Column("started", spare=LESS_NEEDED["started"]),
    ]
    rows = [
        [
            Cell(name, link="" if run.folder is None else link(run.folder, folder), whole=run.where),
            *(key_cell(run, baseline, key) for key in result.keys),
            Cell(run.status, mark="" if run.status == "FINISHED" else "unfinished"),
            *(metric_cell(name, run.metrics.get(name), best[name]) for name in result.metrics),
            Cell(f"{datetime.fromtimestamp(run.started_s):%Y-%m-%d %H:%M}"),
        ]
        for run, name in zip(result.runs, result.labels, strict=True)
    ]
    about = (
        "Beside the metrics stands what differs in the configuration, marked where it is not as in "
        f"{result.labels[result.runs.index(baseline)]}. Only finished runs have metrics."
    )
    return Sheet("Runs", about, columns, rows)


def link(target: Path, folder: Path) -> str:
    """A relative URL of one folder, seen from another."""
    return quote(os.fsencode(os.path.relpath(target, folder.resolve())))


def seeds_sheet(result: Comparison) -> Sheet:
    """One row a group."""
    keys = {key: short for key, short in result.keys.items() if key != SEED}
    metrics = [name for name in result.metrics if name != "best/epoch"]
    columns = [
        *([Column(short, is_key=True, spare=1) for short in keys.values()] or [Column("runs")]),
        Column("n", is_number=True),
        *(Column(header(name), is_number=True, spare=spare(name)) for name in metrics),
    ]
    rows = [
        [
            *([key_cell(group.runs[0], group.runs[0], key) for key in keys] or [Cell(group.label)]),
            count_cell(group),
            *(stat_cell(name, group.stats[name]) for name in metrics),
        ]
        for group in result.groups
    ]
    about = "Mean ± sample standard deviation (n - 1) over runs that differ only in their seed."
    return Sheet("Over seeds", about, columns, rows)


def classes_sheet(result: Comparison) -> Sheet:
    """One row a class: IoU and, in brackets, the difference to the baseline."""
    labels = [unit.label for unit in result.units]
    columns = [
        Column("class"),
        Column(f"{labels[0]} (baseline)", is_number=True),
        *(Column(label, is_number=True, spare=index) for index, label in enumerate(labels[1:])),
    ]
    top = max((abs(one) for row in result.classes for one in row.differences[1:] if one is not None), default=0.0)
    rows = []
    for row in result.classes:
        first, *others = zip(row.ious, row.differences, strict=True)
        cells = [Cell(row.name), Cell(percent(first[0]), first[0])]
        for iou, change in others:
            told = "" if change is None else f" ({points(change)})"
            share = change / top if change is not None and top else 0.0
            cells.append(Cell(percent(iou) + told, change, share=share))
        rows.append(cells)
    about = (
        "IoU in percent (difference to the baseline in percentage points), largest differences first. "
        f"From the tables of the {'last validation' if result.split == 'val' else 'test'}."
    )
    return Sheet(f"Classes ({result.split})", about, columns, rows, f"{100 * top:.2f}" if top else "")


def header(metric: str) -> str:
    """A column's header."""
    split, _, score = metric.partition("/")
    return HEADERS[metric] if metric in HEADERS else f"{split} {HEADERS[score]}"


def spare(metric: str) -> int:
    """How well one does without a metric."""
    return 0 if metric == "best/mean_iou" else LESS_NEEDED[metric.partition("/")[2]]


def best_value(name: str, values: Sequence[float | None]) -> float | None:
    """The best of several values, or None where there is nothing to choose."""
    known = [value for value in values if value is not None]
    if len(set(known)) < 2 or name == "best/epoch":
        return None
    return min(known) if name.endswith("/loss") else max(known)


def key_cell(run: Run, baseline: Run, key: str) -> Cell:
    """A configuration value; marked where the baseline has another."""
    value = run.config.get(key)
    if value is None:
        return Cell(UNDEFINED)
    try:
        number: float | None = float(value)
    except ValueError:
        number = None
    is_same = key == SEED or comparable(value) == comparable(baseline.config.get(key, ""))
    return Cell(shortened(value), number, "" if is_same else "differs", whole=value)


def metric_cell(name: str, value: float | None, best: float | None) -> Cell:
    """A metric; marked where it is the best of all."""
    return Cell(shown(name, value), value, "best" if value is not None and value == best else "")


def count_cell(group: Group) -> Cell:
    """How many runs of a group have metrics."""
    count = max((one.n for one in group.stats.values()), default=0)
    return Cell(str(count), count)


def stat_cell(name: str, stat: Stat) -> Cell:
    """Mean ± standard deviation."""
    return Cell(f"{shown(name, stat.mean)} ± {shown(name, stat.std)}" if stat.n else UNDEFINED, stat.mean)


def shown(name: str, value: float | None) -> str:
    """A metric for people."""
    if value is None:
        return UNDEFINED
    if name == "best/epoch":
        return f"{value:.0f}"
    return f"{value:.4f}" if name.endswith("/loss") else percent(value)


def points(difference: float) -> str:
    """A difference of fractions in percentage points."""
    return f"{100 * difference:+.2f}"


def shortened(value: str) -> str:
    """A value that fits a column: the end of a path, the beginning of anything else."""
    if len(value) <= LONGEST:
        return value
    return f"…{value[1 - LONGEST :]}" if "/" in value else f"{value[: LONGEST - 1]}…"
