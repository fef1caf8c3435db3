"""Environment variables of processes that are started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment(variable: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for processes started in this block."""
    before = os.environ.get(variable)
    if value is not None:
        os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before
