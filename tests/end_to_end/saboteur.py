"""What tests name as ``device.plugin`` to make a job fail: it ends the job's own process, as the environment says."""

import atexit
import multiprocessing
import os
import signal

if multiprocessing.parent_process() is not None:
    if os.environ.get("SABOTAGE") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("SABOTAGE") == "memory":
        raise MemoryError("a test took it all")
    if os.environ.get("SABOTAGE") == "end":
        atexit.register(os.abort)
