"""What the command-line tools have in common: signals, errors and exit codes."""

import signal
import sys
from collections.abc import Callable

from pspexp.errors import EXIT_USER_ERROR, UserError
from pspexp.utils.console_handler import escape_unencodable


def run_tool(work: Callable[[], None], hint: str = "run the command again") -> int:
    """Run a tool; returns its exit code.

    Args:
        work: What the tool does, from parsing its arguments to its last line.
        hint: What to do after an interruption.
    """
    escape_unencodable()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a normal exit removes unfinished files
    try:
        work()
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"interrupted; {hint}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
