"""A ``device.plugin`` that makes a job's process fail as the environment variable SABOTAGE says."""

import multiprocessing
import os
import signal
from collections.abc import Callable

if multiprocessing.parent_process() is not None:
    if os.environ.get("SABOTAGE") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("SABOTAGE") == "memory":
        raise MemoryError("simulated")
    if os.environ.get("SABOTAGE") == "end":

        class Abort:
            """Aborts the process late in interpreter shutdown."""

            def __del__(self, abort: Callable[[], None] = os.abort) -> None:
                abort()

        last = Abort()
