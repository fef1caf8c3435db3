"""Supervision of the processes that torch's elastic agent starts."""

import logging
import logging.config
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from unittest import mock

from torch.distributed.elastic.multiprocessing import api as agents_processes

from pspexp.errors import Interrupted

STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)


POLL_S = 0.05


GRACE_S = 10  # for the other processes to end by themselves when one has failed


log = logging.getLogger(__name__)


def handled_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask to stop; not those that this process was told to ignore, as ``nohup`` does."""
    return tuple(number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)


class ProcessSupervisor:
    """Keeps watch over the processes that the agent starts, in a thread: the agent has the main one.

    The agent would answer a signal by ending the processes, after 30 seconds by force, which may be less than a
    step. Here the first one is passed on as a request to stop and waited for; a second one kills. When a process
    has failed the others get `GRACE_S` to end.

    Attributes:
        stopped_by: the signal that came, if one did.
        first_dead: pid of the process that failed first in the last attempt.
    """

    def __init__(self, nproc: int, max_restarts: int, stop_asked: Callable[[], int | None]) -> None:
        self._nproc, self._restarts_left, self._stop_asked = nproc, max_restarts, stop_asked
        self.stopped_by: int | None = None
        self.first_dead: int | None = None
        self._heeded = handled_signals()
        self._others = set(multiprocessing.active_children())
        self._known: frozenset[BaseProcess] = frozenset()
        self._told: set[BaseProcess] = set()
        self._doomed: dict[BaseProcess, float] = {}
        self._end = threading.Event()
        self._exit = ExitStack()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessSupervisor":
        # What the agent sets as the handler each time it starts processes.
        self._exit.enter_context(mock.patch.object(agents_processes, "_terminate_process_handler", self._note))
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for number in STOP_SIGNALS:
                self._exit.callback(signal.signal, number, signal.getsignal(number))
            for number in self._heeded:
                # Until the agent has met the other machines: it waits in torch, where handlers of Python do not run.
                signal.signal(number, signal.SIG_DFL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._exit.close()

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.stopped_by is not None:
            raise Interrupted(self.stopped_by, "stopped before the processes could save; the last save stays")

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            codes = {child: exit_code(child) for child in self._known}
            # Asked only while the agent is starting them: to ask reaps, and then the agent finds no exit code.
            if len(codes) % self._nproc or all(code is not None for code in codes.values()):
                self._known = frozenset(self._known.union(multiprocessing.active_children()) - self._others)
            self._see_failures(codes)
            if self.stopped_by is None:
                self.stopped_by = self._stop_asked()
            self._pass_on(codes)

    def _see_failures(self, codes: dict[BaseProcess, int | None]) -> None:
        dead = {child: code for child, code in codes.items() if code}
        alive = {child for child, code in codes.items() if code is None}
        if new := dead.keys() - self._doomed.keys():  # the first of this attempt; of several, one that was killed
            first = min(new, key=lambda child: (dead[child] == -signal.SIGTERM, dead[child]))
            self.first_dead = first.pid
            if self._restarts_left and self.stopped_by is None:
                log.error("process %s ended with %s; all start again", first.pid, dead[first])
            self._restarts_left = max(self._restarts_left - 1, 0)
            self._doomed |= dict.fromkeys(alive | dead.keys(), time.monotonic() + GRACE_S)
        for child in alive & self._doomed.keys():
            if time.monotonic() > self._doomed[child]:
                child.kill()

    def _note(self, number: int, _: object) -> None:
        if number not in self._heeded:
            return
        if self.stopped_by is not None:
            for child in self._known:
                child.kill()
        self.stopped_by = int(number)

    def _pass_on(self, codes: dict[BaseProcess, int | None]) -> None:
        if self.stopped_by is not None:
            for child in {one for one, code in codes.items() if code is None} - self._told:
                child.terminate()
                self._told.add(child)


def exit_code(child: BaseProcess) -> int | None:
    """The exit code of a process, negative after a signal; None while it lives. It is left to others to reap."""
    known: int | None = child._popen.returncode  # type: ignore[attr-defined]
    if known is not None:
        return known
    try:
        end = os.waitid(os.P_PID, child.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # reaped just now; its code will be known in a moment
        return None
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
