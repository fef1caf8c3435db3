"""Output to the terminal."""

import io
import logging
import sys


class ConsoleHandler(logging.Handler):
    """Writes errors to stderr and everything else to stdout, until the reader of stdout has exited (``| head -1``)."""

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        escape_unencodable()  # this may be a process of its own

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            print(self.format(record), file=sys.stderr if record.levelno >= logging.ERROR else sys.stdout, flush=True)
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


def escape_unencodable() -> None:
    """Write characters that the terminal's encoding lacks as escapes such as ``\\u2013``, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
