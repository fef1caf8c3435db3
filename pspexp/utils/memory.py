"""The C library's memory allocator."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation.

    By default, glibc returns large blocks to the system as soon as they are freed, and so each step of a training on
    CPUs would wait for the system to map and clear its activations anew (docs/benchmarks.md). Without effect on other
    systems, or if an environment variable configures glibc's allocator.
    """
    if sys.platform == "linux" and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_TRIM_THRESHOLD, NEVER)
            mallopt(M_MMAP_THRESHOLD, NEVER)
