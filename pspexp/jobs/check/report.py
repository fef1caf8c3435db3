"""``report.csv`` and ``report.html``: everything that ``mode=check`` found, the page without any other file."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pspexp.data.inspection.findings import Finding
from pspexp.jobs.check.data import CheckedData, SplitSummary
from pspexp.jobs.check.environment import Rows
from pspexp.jobs.check.report_images import ReportImage, hex_colours
from pspexp.jobs.check.suggestions import Suggestion
from pspexp.utils.files import write_text_atomic
from pspexp.utils.tables import csv_table

HEAD = ("level", "kind", "split", "file", "message", "fix")
MAX_SIZES = 6


@dataclass(frozen=True)
class Content:
    """What a report shows."""

    environment: Rows
    findings: list[Finding]
    data: CheckedData
    suggestions: list[Suggestion]
    examples: list[ReportImage]
    batch: list[ReportImage] | str


def write(content: Content, folder: Path) -> list[Path]:
    """Write both files; returns them."""
    files = [folder / "report.html", folder / "report.csv"]
    write_text_atomic(files[0], page(content))
    write_text_atomic(files[1], csv_table([HEAD, *(row(finding, content.data) for finding in content.findings)]))
    return files


def row(finding: Finding, data: CheckedData) -> list[str]:
    """A finding as a row of the table."""
    file = data.show(finding.file) if finding.file is not None else ""
    return [finding.level, finding.kind, finding.split, file, finding.message, finding.fix]


def page(content: Content) -> str:
    """The page."""
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    data, levels = content.data, [finding.level for finding in content.findings]
    names = data.info.class_names if data.info else []
    return environment.from_string(template).render(
        about=f"{place(data)}; {datetime.now():%Y-%m-%d %H:%M}",
        errors=levels.count("error"),
        warnings=levels.count("warning"),
        findings=[dict(zip(HEAD, row(finding, data), strict=True)) for finding in content.findings],
        class_names=names,
        colours=hex_colours(data.info) if data.info else [],
        splits=[split(summary) for summary in data.summaries],
        suggestions=content.suggestions,
        examples=content.examples,
        batch=content.batch if isinstance(content.batch, list) else [],
        no_batch=content.batch if isinstance(content.batch, str) else "",
        environment=content.environment,
    )


def place(data: CheckedData) -> str:
    """Where the data is; below the working directory as a relative path."""
    if data.inspection is None:
        return "generated data" if data.info else "no data"
    root, here = data.inspection.root, Path.cwd()
    return str(root.relative_to(here) if root.is_relative_to(here) else root)


def span(values: Sequence[int]) -> str:
    """``480``, or ``120–480``."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def split(summary: SplitSummary) -> dict[str, Any]:
    """What the page shows of a split."""
    largest = max(float(summary.shares.max(initial=0)), 1e-9)
    common = summary.sizes.most_common(MAX_SIZES)
    widths, heights = zip(*summary.sizes, strict=True) if summary.sizes else ((0,), (0,))
    most = common[0][1] if common else 1
    return {
        "name": summary.name,
        "images": len(summary.split),
        "counted": summary.counted,
        "void": summary.void,
        "shares": [(float(share), 100 * float(share) / largest) for share in summary.shares],
        "with_class": summary.images.tolist(),
        "sizes": [(f"{width} × {height}", number, 100 * number / most) for (width, height), number in common],
        "more_sizes": max(len(summary.sizes) - MAX_SIZES, 0),
        "range": f"{span(widths)} × {span(heights)} pixels",
    }
