"""Fixtures of the tests of faults."""

from tests.end_to_end.conftest import start

__all__ = ["start"]
