"""The wait policy of OpenMP's threads."""

import os

SPIN_COUNT = 10_000  # tens of microseconds


def shorten_spinning() -> None:
    """Let OpenMP threads that wait for each other sleep after tens of microseconds; call it before torch is imported.

    Those of GNU OpenMP, which PyTorch uses on Linux, spin for milliseconds by default. Where another program keeps one
    of the cores busy, they take the time that the thread they wait for needs: see docs/benchmarks.md. What the user has
    set in ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
