"""Prepare a data set in the VOC layout: unpack a tar safely (or use an unpacked folder), check folders and splits,
convert the labels to SegmentationClassGray, and print how often each class occurs.

It can be interrupted and run again. Wrong input exits with code 2 and lists every problem.
"""

import argparse
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pspexp.data.preparation.prepare import Prepared, prepare
from pspexp.errors import UserError
from pspexp.utils.console_handler import escape_unencodable


def main() -> int:
    escape_unencodable()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="VOC tar (VOCtrainval_06-Nov-2007.tar), or an unpacked folder")
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="where to unpack a tar (default data)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files that have other contents")
    parser.add_argument("--workers", type=int, help="number of processes (default: one per core)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a normal exit removes unfinished files
    try:
        done = prepare(
            args.source,
            args.output_dir,
            overwrite=args.overwrite,
            num_workers=args.workers,
            show_progress=sys.stdout.isatty(),
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the command again to continue", file=sys.stderr)
        return 130
    for data in done:
        show(data)
    return 0


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
