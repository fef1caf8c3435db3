"""The classes and functions that files from elsewhere may name, because the user says so."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase

VARIABLE = "PSPEXP_ALLOW_TARGETS"  # patterns, comma-separated

_allowed_here: ContextVar[tuple[str, ...]] = ContextVar("allowed_here", default=())


@contextmanager
def allowing(patterns: Sequence[str]) -> Iterator[None]:
    """Also allow these targets in the block, as ``PSPEXP_ALLOW_TARGETS`` does."""
    token = _allowed_here.set(tuple(patterns))
    try:
        yield
    finally:
        _allowed_here.reset(token)


def is_allowed(name: str) -> bool:
    """Whether the user has allowed a target."""
    listed = (one.strip() for one in os.environ.get(VARIABLE, "").split(","))
    return matches(name, (*_allowed_here.get(), *filter(None, listed)))


def how_to_allow(pattern: str) -> str:
    """The part of an error that says how to allow a target."""
    return f"if you trust the file, set {VARIABLE}={pattern} (or pspexp.load(…, allow_targets=['{pattern}']))"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
