"""Logging to the terminal."""

import logging
import sys


class ConsoleHandler(logging.Handler):
    """Writes errors to stderr and everything else to stdout, until the reader of stdout has exited (``| head -1``)."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            print(self.format(record), file=sys.stderr if record.levelno >= logging.ERROR else sys.stdout, flush=True)
        except BrokenPipeError:
            return
        except Exception:
            self.handleError(record)
