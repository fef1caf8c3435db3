"""Process memory: collect cyclic garbage promptly; keep glibc from returning freed memory."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def garbage_collected() -> Iterator[None]:
    """On exit, free the objects created in the block, including reference cycles.

    Older generations are not scanned: with torch and MLflow loaded, that takes a large part of a second.
    """
    enabled = gc.isenabled()
    gc.disable()  # a collection in between would promote the new objects to an older generation
    try:
        yield
    finally:
        gc.collect(0)
        if enabled:
            gc.enable()
