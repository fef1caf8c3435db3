"""Fixtures of the tests of faults."""

from importlib.util import find_spec

from tests.end_to_end.conftest import start

__all__ = ["start"]

# Not installed with the oldest supported versions.
collect_ignore_glob = [] if find_spec("hypothesis") else ["test_properties_*.py"]
