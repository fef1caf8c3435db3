"""Ends the processes of a sweep whose own process was killed: those of joblib and Ray would wait for it for minutes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

MARK = "PSPEXP_SWEEP_PROCESSES"  # inherited by all processes of a sweep
PROCESSES = Path("/proc")
DONE = b"done"


@contextmanager
def processes_end_with_this_one() -> Iterator[None]:
    """Let a small process watch this one; if it is killed, all processes started in the block get SIGTERM.

    Does nothing where the system does not show the environment of processes (macOS, Windows).
    """
    if not (PROCESSES / "self" / "environ").exists():
        yield
        return
    mark, before = uuid4().hex, os.environ.get(MARK)
    os.environ[MARK] = mark
    # The pipe is not inherited by other processes, so that it ends with this one.
    watchdog = subprocess.Popen([sys.executable, "-I", "-S", __file__, mark], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            watchdog.communicate(DONE)
        os.environ.pop(MARK)
        if before is not None:
            os.environ[MARK] = before


def end_processes(mark: str) -> None:
    """Send SIGTERM to all processes with a mark in their environment, except this one."""
    for file in PROCESSES.glob("[0-9]*/environ"):
        pid = int(file.parent.name)
        with suppress(OSError):  # of another user, or ended
            if pid != os.getpid() and f"{MARK}={mark}".encode() in file.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the sweep
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != DONE:
        end_processes(sys.argv[1])
