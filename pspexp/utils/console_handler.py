"""Output to the terminal."""

import io
import logging
import re
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TextIO

from pspexp.utils.text import wrapped

QUOTED = re.compile(r"(?<!\w)'[^'\n]+'|\"[^\"\n]+\"")


class ConsoleHandler(logging.Handler):
    """Writes errors to stderr and everything else to stdout, until the reader of stdout has exited (``| head -1``).

    On a terminal, lines are broken between words, but not within paths and commands, so that these can be copied.

    Args:
        level: Lowest level of messages that are written.
        only_stderr: Write everything to stderr.
    """

    def __init__(self, level: int | str = logging.NOTSET, *, only_stderr: bool = False) -> None:
        super().__init__(level)
        self.only_stderr = only_stderr
        escape_unencodable()  # this may be a process of its own

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            is_error = self.only_stderr or record.levelno >= logging.ERROR
            stream = sys.stderr if is_error else sys.stdout
            print(fitted(self.format(record), stream, record.args), file=stream, flush=True)
        except BrokenPipeError:
            return
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """Writes to a file; says once that it cannot, instead of a traceback for every line."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by `emit` in the handling of an exception."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            self.failed = True
            print(f"{self.baseFilename}: cannot be written: {error.strerror}", file=sys.stderr)


def fitted(text: str, stream: TextIO, values: Iterable[object] | None = ()) -> str:
    """``text`` as it fits the terminal that a stream is; unchanged for any other stream.

    Args:
        text: Lines.
        stream: Where they are to be written.
        values: What they were formatted with; paths among them are not broken, even if they contain spaces.
    """
    if not getattr(stream, "isatty", bool)():
        return text
    paths = [*(value for value in values or () if isinstance(value, PurePath))]
    with suppress(OSError, RuntimeError):  # the current folder was removed, or the user has no home
        paths += [Path.cwd(), Path.home()]
    unbroken = [str(path) for path in paths if " " in str(path)]
    return wrapped(text, shutil.get_terminal_size().columns, [*unbroken, *QUOTED.findall(text)])


def escape_unencodable() -> None:
    """Write characters that the terminal's encoding lacks as escapes such as ``\\u2013``, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
