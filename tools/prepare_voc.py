"""Prepare a data set in the VOC layout: unpack a tar safely (or use an unpacked folder), check folders and splits,
convert the labels to SegmentationClassGray, and print how often each class occurs.

It can be interrupted and run again. Wrong input exits with code 2 and lists every problem.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pspexp.data.preparation.prepare import Prepared, prepare
from pspexp.utils.tool import run_tool


def main() -> int:
    return run_tool(run, hint="run the command again to continue")


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="VOC tar (VOCtrainval_06-Nov-2007.tar), or an unpacked folder")
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="where to unpack a tar (default data)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files that have other contents")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    args = parser.parse_args()
    done = prepare(
        args.source,
        args.output_dir,
        overwrite=args.overwrite,
        num_workers=args.workers,
        show_progress=sys.stdout.isatty(),
    )
    for data in done:
        show(data)


def show(data: Prepared) -> None:
    table = Table(title=f"{data.folder}: images and pixels of each class")
    table.add_column("class")
    for split in data.splits:
        table.add_column(f"{split} images", justify="right")
        table.add_column("pixels", justify="right")
    for row in data.rows():
        table.add_row(*row)
    console = Console()
    # Without a terminal, rows are not wrapped.
    Console(width=None if console.is_terminal else 40 + 30 * len(data.splits)).print(table)
    print(f"{data.folder}: ready, {data.written} labels converted, {len(data.pixels) - data.written} kept")


if __name__ == "__main__":
    sys.exit(main())
