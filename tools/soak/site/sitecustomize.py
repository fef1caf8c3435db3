"""Python imports this at its start: ends the process at a planned moment, without any clean-up.

``SOAK_KILL=<number>:<milliseconds>`` means: that long after the main process began its change of that number (from 1)
to a file below ``SOAK_ROOT``; number 0 means the start. ``SOAK_LOG`` is a file that receives a line for each change.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from typing import Any

WRITING = ("w", "a", "x", "+")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def end_after(milliseconds: float) -> None:
    """End the process by a signal of the system's, which needs no turn of the interpreter."""
    signal.setitimer(signal.ITIMER_REAL, max(milliseconds, 0.001) / 1000)


class Watch:
    """Counts changes to files, and ends the process at one of them."""

    def __init__(self, root: str, plan: str, log: str) -> None:
        self.root, self.log, self.count, self.inside = root, log, 0, False
        number, _, delay = plan.partition(":")
        self.number, self.delay_ms = int(number or -1), float(delay or 0)
        if self.number == 0:
            end_after(self.delay_ms)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook, see `sys.addaudithook`."""
        if self.inside or (event != "open" and event not in CHANGES):
            return
        path = arguments[-1] if event == "os.link" else arguments[0]
        if event == "open" and not changes(*arguments[1:]):
            return
        if not isinstance(path, str | os.PathLike) or multiprocessing.parent_process() is not None:
            return
        place = os.path.abspath(os.fspath(path))  # noqa: PTH100 - resolving links would be an event, too
        if not place.startswith(self.root):
            return
        self.inside = True
        try:
            self.change(f"{event} {place.removeprefix(self.root)}")
        finally:
            self.inside = False

    def change(self, what: str) -> None:
        """One more change."""
        self.count += 1
        if self.log:
            with contextlib.suppress(OSError), open(self.log, "a") as file:  # noqa: PTH123
                file.write(what + "\n")
        if self.count == self.number:
            if self.delay_ms:
                end_after(self.delay_ms)
            else:
                os.kill(os.getpid(), signal.SIGKILL)


def changes(mode: object = None, flags: object = 0) -> bool:
    """Whether a file is opened to be written."""
    if isinstance(mode, str):
        return any(sign in mode for sign in WRITING)
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if "SOAK_ROOT" in os.environ:
    sys.addaudithook(Watch(os.environ["SOAK_ROOT"], os.environ.get("SOAK_KILL", ""), os.environ.get("SOAK_LOG", "")))
