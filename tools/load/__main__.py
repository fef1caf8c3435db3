"""Measure start-up, steps, comparisons and resuming under large loads, and compare them with bounds.

    python -m tools.load                  # all loads; about half an hour on one core
    python -m tools.load images points    # some loads

  images  10,000 images, 200 classes
  epochs  20 epochs: memory, open files and threads of the main process and of two workers
  runs    1,000 runs in MLflow's store
  points  100,000 points in the records of a run
  jobs    200 jobs in a sweep

Times are CPU time, which other load on the machine hardly changes. Exits with code 1 if a bound is broken.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pspexp.utils.tables import markdown_table
from tools.load.loads import LOADS, measure

HEADER = ["load", "what", "measured", "without the load", "ratio", "bound"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", nargs="*", metavar="load", help=f"of {', '.join(LOADS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/load"), help="for what is generated")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.loads if name not in LOADS]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(LOADS)}")
    found = []
    for one in measure(options.loads or [*LOADS], options.folder.absolute()):
        print(*one.cells(), sep="; ", file=sys.stderr, flush=True)
        found.append(one)
    print(*markdown_table(HEADER, [one.cells() for one in found], right_aligned=(2, 3, 4)), sep="\n")
    return int(not all(one.holds for one in found))


if __name__ == "__main__":
    sys.exit(main())
