"""The report of ``mode=check`` on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pspexp.data.inspection.findings import Finding, summarised
from pspexp.jobs.check.data import CheckedData, SplitSummary
from pspexp.jobs.check.suggestions import Suggestion
from pspexp.utils.tables import PIPED_WIDTH
from pspexp.utils.text import count, shorten_middle

STYLES = {"error": "bold red", "warning": "yellow"}
MAX_CLASSES = 50  # rows
NAME = 30  # characters of a class name


def console() -> Console:
    """A console of a fixed width where the output is not a terminal."""
    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = PIPED_WIDTH
    return made


def show(
    out: Console, findings: Sequence[Finding], data: CheckedData, advice: Sequence[Suggestion], files: Sequence[Path]
) -> None:
    """Print findings, class shares, sizes and suggestions."""
    out.print()
    out.print(Text(headline(findings), "bold"))
    if findings:
        out.print(as_table(findings, data))
    if data.info is not None and data.summaries:
        out.print(shares(data.info.class_names, data.summaries))
        for summary in data.summaries:
            out.print(Text(f"{summary.name}: {sizes(summary)}"))
    for suggestion in advice:
        out.print()
        out.print(Text(f"Suggestion: {suggestion.overrides}", "bold"), soft_wrap=True)
        out.print(Text(suggestion.basis, "dim"))
    out.print()
    for file in files:
        out.print(Text(f"Written to {file}"), soft_wrap=True)
    if not any(finding.level == "error" for finding in findings):
        out.print("The configuration is valid and everything in it can be built.")


def headline(findings: Sequence[Finding]) -> str:
    """How many errors and warnings there are."""
    if not findings:
        return "No findings"
    levels = [finding.level for finding in findings]
    return f"{count(levels.count('error'), 'error')}, {count(levels.count('warning'), 'warning')}"


def as_table(findings: Sequence[Finding], data: CheckedData) -> Table:
    """The findings, errors first; of many of one kind only the first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("level", no_wrap=True)
    table.add_column("kind", width=14)
    table.add_column("what, and how to fix it", ratio=1, overflow="fold")
    for finding in summarised(findings, data.show):
        what = Text()
        if finding.file is not None:
            what.append(f"{data.show(finding.file)}\n", "bold")
        elif finding.split:
            what.append(f"{finding.split}\n", "bold")
        what.append(f"{finding.message}\n")
        what.append(f"→ {finding.fix}\n", "green")
        table.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.kind), what)
    return table


def shares(class_names: Sequence[str], summaries: Sequence[SplitSummary]) -> Table:
    """Share of each class in the labelled pixels, and number of images with it, per split."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("class", no_wrap=True)
    for summary in summaries:
        table.add_column(f"{summary.name} pixels", justify="right")
        table.add_column("images", justify="right")
    for index, name in enumerate(class_names[:MAX_CLASSES]):
        cells = []
        for summary in summaries:
            cells += [f"{summary.shares[index]:.2%}", str(summary.images[index])]
        table.add_row(Text(shorten_middle(name, NAME)), *cells)
    if len(class_names) > MAX_CLASSES:
        table.add_row(f"… and {len(class_names) - MAX_CLASSES} more in the report")
    table.add_row(Text("ignored", "dim"), *(cell for one in summaries for cell in (f"{one.void:.2%}", "")))
    return table


def sizes(summary: SplitSummary) -> str:
    """``367 images, 480×360 (367)``."""
    common = ", ".join(f"{width}×{height} ({number})" for (width, height), number in summary.sizes.most_common(3))
    more = f" and {len(summary.sizes) - 3} more sizes" if len(summary.sizes) > 3 else ""
    labels = "" if summary.counted == len(summary.split) else f", {summary.counted} labels read"
    return f"{count(len(summary.split), 'image')}{labels}; {common}{more}"
