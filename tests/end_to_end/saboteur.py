"""What tests name as ``device.plugin`` to make a job fail: it ends the job's own process, as the environment says."""

import multiprocessing
import os
import signal
from collections.abc import Callable

if multiprocessing.parent_process() is not None:
    if os.environ.get("SABOTAGE") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("SABOTAGE") == "memory":
        raise MemoryError("a test took it all")
    if os.environ.get("SABOTAGE") == "end":

        class Abort:
            """Ends the process when Python has taken down almost everything."""

            def __del__(self, abort: Callable[[], None] = os.abort) -> None:
                abort()

        last = Abort()
