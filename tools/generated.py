"""The command line of tools that write a generated file of the documentation."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pspexp.utils.files import shown_path, write_text_atomic

CHECKOUT = Path(__file__).parents[1]


def write_or_check(
    file: Path, make: Callable[[], str], module: str, description: str | None, arguments: Sequence[str] | None
) -> int:
    """Write a file, or with ``--check`` compare it; returns the exit code.

    Args:
        file: The file.
        make: Returns its text.
        module: The tool, as in ``python -m tools.reference``.
        description: Of the tool, for its help.
        arguments: The command line; None takes that of the process.
    """
    parser = argparse.ArgumentParser(
        f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help=f"only say whether {file.name} is up to date")
    options = parser.parse_args(arguments)
    text = make()
    if not options.check:
        write_text_atomic(file, text)
    elif not file.is_file() or file.read_text(encoding="utf-8") != text:
        print(f"{shown_path(file)} is not up to date; run python -m {module}", file=sys.stderr)
        return 1
    return 0
