"""The allocator: freed memory is used again."""

import os
import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource
import numpy as np
from pspexp.utils.memory import keep_freed_memory

keep_freed_memory()
for _ in range(3):
    np.ones(64 << 20, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(64 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**environment: str) -> int:
    """Page faults of ten allocations of 64 MiB, in a process of their own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PAGE_FAULTS]
    found = subprocess.run(command, env={**others, **environment}, capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is configured")
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise() -> None:
    assert page_faults() < 100
    assert page_faults(MALLOC_MMAP_THRESHOLD_="1048576") > 100
