"""The measurements, and how they are printed."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """The measurements in one row of a table.

    Attributes:
        times: seconds per run; a run processes ``images`` images, if set.
        workers: number of loader workers.
        flops: floating-point operations per run.
        peak: floating-point operations per second of a large matrix product in the same format.
        memory_mib, reserved_mib: peak memory, used and reserved.
        note: printed below the table.
        failure: why there are no times.
    """

    times: list[float] = field(default_factory=list)
    images: int | None = None
    workers: int | None = None
    flops: int | None = None
    peak: float | None = None
    memory_mib: float | None = None
    reserved_mib: float | None = None
    note: str = ""
    failure: str = ""

    @property
    def best_flops(self) -> float:
        """Floating-point operations per second, at the shortest of the times."""
        return max(((self.flops or 0) / seconds for seconds in self.times), default=0.0)

    def as_dict(self, baseline: "Row | None") -> dict[str, Any]:
        """Plain values for JSON, including those derived from the times."""
        content: dict[str, Any] = {"times_s": self.times, "note": self.note, "failure": self.failure}
        content |= {"flops": self.flops, "memory_mib": self.memory_mib, "reserved_mib": self.reserved_mib}
        if not self.times:
            return content
        median = statistics.median(self.times)
        content |= {"median_s": median, "quartiles_s": quartiles(self.times)}
        if baseline and baseline.times:
            content["ratio"] = statistics.median(baseline.times) / median
        if self.images:
            content["images_per_s"] = self.images / median
        if self.images and self.workers is not None:
            content["images_per_s_per_worker"] = self.images / median / max(self.workers, 1)
        if self.flops and self.peak:
            content["share_of_peak"] = self.flops / median / self.peak
        return content


@dataclass
class Table:
    """Rows that were measured in interleaved order.

    Attributes:
        key: identifies it among the tables of its benchmark.
        baseline: name of the row that the others are compared with.
        facts: further facts, by name.
    """

    key: str
    rows: dict[str, Row]
    baseline: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        baseline = self.rows.get(self.baseline or "")
        rows = {name: row.as_dict(baseline) for name, row in self.rows.items()}
        return {"baseline": self.baseline, "facts": self.facts, "rows": rows}


COLUMNS: dict[str, Callable[[dict[str, Any]], float | str | None]] = {
    "median ms": lambda row: 1e3 * row["median_s"],
    "quartiles": lambda row: "–".join(number(1e3 * value) for value in row["quartiles_s"]),
    "ratio": lambda row: f"{row['ratio']:.3f}",
    "images/s": lambda row: row["images_per_s"],
    "per worker": lambda row: row["images_per_s_per_worker"],
    "GFLOP": lambda row: row["flops"] and row["flops"] / 1e9,
    "% of peak": lambda row: f"{100 * row['share_of_peak']:.1f}",
    "MiB": lambda row: row["memory_mib"],
    "MiB reserved": lambda row: row["reserved_mib"],
}


def cell(row: dict[str, Any], column: str) -> str:
    """A cell of the printed table; empty if the row has no such value."""
    try:
        value = COLUMNS[column](row)
    except KeyError:
        return ""
    return value if isinstance(value, str) else number(value)


def show(bench: str, key: str, table: dict[str, Any]) -> None:
    """Print a table (from `Table.as_dict`), without empty columns."""
    rows = table["rows"]
    columns = [column for column in COLUMNS if any(cell(row, column) for row in rows.values())]
    lines = [["", *columns]]
    lines += [[name, *(cell(row, column) for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    print(f"\n{bench}: {key}")
    for name, *texts in lines:
        cells = "  ".join(text.rjust(width) for text, width in zip(texts, widths[1:], strict=True))
        failure = rows[name]["failure"] if name in rows else ""
        print(f"  {name.ljust(widths[0])}  {failure or cells}".rstrip())
    for name, value in table["facts"].items():
        print(f"  {name}: {number(value) if isinstance(value, float) else value}")
    for name, row in rows.items():
        if row["note"]:
            print(f"  {name}: {row['note']}")


def number(value: float | None) -> str:
    """Four significant digits or more."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def quartiles(times: Sequence[float]) -> list[float]:
    """The first and the third quartile."""
    if len(times) == 1:
        return [times[0], times[0]]
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return [first, third]
