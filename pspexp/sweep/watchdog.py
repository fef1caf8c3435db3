"""Ends the processes of a sweep whose own process was killed: those of joblib and Ray would wait for it for minutes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

MARK = "PSPEXP_SWEEP_PROCESSES"  # inherited by all processes of a sweep
PROCESSES = Path("/proc")
DONE = b"done"
LOOKS, INTERVAL_S = 50, 0.2


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
    """Send SIGTERM to all processes with a mark in their environment, except this one.

    A process that was just being started does not have it yet, so they are looked for more than once.
    """
    asked = {os.getpid()}
    for _ in range(LOOKS):
        for pid in marked(mark) - asked:
            with suppress(OSError):  # it has ended
                os.kill(pid, signal.SIGTERM)
            asked.add(pid)
        time.sleep(INTERVAL_S)


def marked(mark: str) -> set[int]:
    """The processes with a mark in their environment."""
    found = set()
    for file in PROCESSES.glob("[0-9]*/environ"):
        with suppress(OSError):  # of another user, or ended
            if f"{MARK}={mark}".encode() in file.read_bytes().split(b"\0"):
                found.add(int(file.parent.name))
    return found


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the sweep
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() != DONE:
        end_processes(sys.argv[1])
