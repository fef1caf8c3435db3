"""Compare ratios of speeds with those that were measured before; fails if one has fallen by more than 15 %.

    python -m tools.bench.check             # on an otherwise idle machine
    python -m tools.bench.check --update    # keep what is measured now

Ratios of two times in one run depend much less on the machine than the times do; another processor may still need its
own file (--file).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pspexp.utils.tables import markdown_table
from tools.bench.__main__ import main as bench

EXPECTED = Path(__file__).with_name("expected.json")
LARGEST_FALL = 0.15
SIZE = ("--size", "257", "--repeats", "5", "--no-memory")
COMMANDS = (
    ("head", *SIZE),
    ("step", "inference", *SIZE, "--against", "semseg-form", "--models", "pspnet50_factorised"),
    ("overhead", *SIZE),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the ratios to the file instead")
    parser.add_argument("--file", type=Path, default=EXPECTED, help="the ratios (default: %(default)s)")
    options = parser.parse_args(arguments)
    measured = measure()
    if options.update:
        options.file.write_text(json.dumps(measured, indent=1) + "\n")
        return 0
    expected: dict[str, float] = json.loads(options.file.read_text())
    print("\n".join(markdown_table(("ratio", "before", "now", "change"), rows(expected, measured), (1, 2, 3))))
    failed = [name for name in expected if is_worse(expected[name], measured.get(name))]
    for name in failed:
        print(f"{name}: has fallen by more than {LARGEST_FALL:.0%}", file=sys.stderr)
    return int(bool(failed))


def measure() -> dict[str, float]:
    """The ratio of each row that is not a baseline, by benchmark, table and row."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, command in enumerate(COMMANDS):
            file = Path(folder, f"{number}.json")
            if code := bench([*command, "--json", str(file)]):
                raise SystemExit(code)
            found |= ratios(json.loads(file.read_text())["results"])
    return found


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The ratios in the results of benchmarks."""
    return {
        f"{bench}, {key}: {name}": round(row["ratio"], 3)
        for bench, tables in results.items()
        for key, table in tables.items()
        for name, row in table["rows"].items()
        if "ratio" in row and name != table["baseline"] and not name.startswith("matrix product")
    }


def is_worse(before: float, now: float | None) -> bool:
    """Whether a ratio is missing or has fallen too far."""
    return now is None or now < (1 - LARGEST_FALL) * before


def rows(expected: dict[str, float], measured: dict[str, float]) -> list[tuple[str, str, str, str]]:
    """The rows of the comparison."""
    return [
        (name, f"{before:.3f}", f"{now:.3f}", f"{now / before - 1:+.1%}")
        if (now := measured.get(name)) is not None
        else (name, f"{before:.3f}", "missing", "")
        for name, before in expected.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
