"""Supervision of the worker processes started by torch's elastic agent."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from unittest import mock

from torch.distributed.elastic.multiprocessing import api as agent_processes

from pspexp.errors import Interrupted
from pspexp.launchers.base import STOP_SIGNALS, StopSignal, stop_signals

POLL_INTERVAL_S = 0.05
GRACE_PERIOD_S = 10  # for the remaining workers to exit after one has failed

log = logging.getLogger(__name__)


class ProcessSupervisor:
    """Watches the workers of the elastic agent from a thread; the agent occupies the main thread.

    On a signal the agent would terminate the workers and kill them after 30 seconds, which may be less than a step.
    Instead, the first signal is forwarded to the workers as a request to stop, and they are waited for; a second one
    kills them. After a worker has failed, the others get `GRACE_PERIOD_S` to exit.

    Args:
        num_workers: number of workers that the agent starts.
        max_restarts: how often the agent restarts them.
        poll_stop: polled for requests to stop other than signals.

    Attributes:
        stopped_by: number of the signal that requested a stop, if any.
        first_failed_pid: process id of the worker that failed first, in the last attempt.
    """

    def __init__(self, num_workers: int, max_restarts: int, poll_stop: StopSignal) -> None:
        self._num_workers, self._restarts_left, self._poll_stop = num_workers, max_restarts, poll_stop
        self.stopped_by: int | None = None
        self.first_failed_pid: int | None = None
        self._signals = stop_signals()
        self._unrelated = set(multiprocessing.active_children())
        self._workers: frozenset[BaseProcess] = frozenset()
        self._terminated: set[BaseProcess] = set()
        self._kill_deadlines: dict[BaseProcess, float] = {}
        self._finished = threading.Event()
        self._exit = ExitStack()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessSupervisor":
        # The agent installs this handler whenever it starts the workers.
        self._exit.enter_context(mock.patch.object(agent_processes, "_terminate_process_handler", self._handle_signal))
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            for number in STOP_SIGNALS:
                self._exit.callback(signal.signal, number, signal.getsignal(number))
        for number in self._signals:
            # Until the rendezvous with the other machines: torch waits for it in C++, where no Python handler runs.
            signal.signal(number, signal.SIG_DFL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finished.set()
        self._thread.join()
        self._exit.close()

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.stopped_by is not None:
            raise Interrupted(
                self.stopped_by, "stopped before the processes could save; the previous checkpoint is kept"
            )

    def _watch(self) -> None:
        while not self._finished.wait(POLL_INTERVAL_S):
            exit_codes = {worker: exit_code(worker) for worker in self._workers}
            # Only while the agent starts workers: active_children() reaps, and the agent would miss the exit code.
            if len(exit_codes) % self._num_workers or all(code is not None for code in exit_codes.values()):
                self._workers = frozenset(self._workers.union(multiprocessing.active_children()) - self._unrelated)
            self._handle_failures(exit_codes)
            if self.stopped_by is None:
                self.stopped_by = self._poll_stop()
            if self.stopped_by is not None:
                for worker in {one for one, code in exit_codes.items() if code is None} - self._terminated:
                    worker.terminate()
                    self._terminated.add(worker)

    def _handle_failures(self, exit_codes: dict[BaseProcess, int | None]) -> None:
        failed = {worker: code for worker, code in exit_codes.items() if code}
        alive = {worker for worker, code in exit_codes.items() if code is None}
        if new := failed.keys() - self._kill_deadlines.keys():
            # The first failure of this attempt; of simultaneous ones, a worker that the agent has not terminated.
            first = min(new, key=lambda worker: (failed[worker] == -signal.SIGTERM, failed[worker]))
            self.first_failed_pid = first.pid
            if self._restarts_left and self.stopped_by is None:
                log.error("pid %s ended with exit code %s; restarting all processes", first.pid, failed[first])
            self._restarts_left = max(self._restarts_left - 1, 0)
            self._kill_deadlines |= dict.fromkeys(alive | failed.keys(), time.monotonic() + GRACE_PERIOD_S)
        for worker in alive & self._kill_deadlines.keys():
            if time.monotonic() > self._kill_deadlines[worker]:
                worker.kill()

    def _handle_signal(self, number: int, _: object) -> None:
        if number not in self._signals:
            return
        if self.stopped_by is not None:
            for worker in self._workers:
                worker.kill()
        self.stopped_by = int(number)


def exit_code(process: BaseProcess) -> int | None:
    """The exit code of a process, negative after a signal, or None while it runs. Does not reap the process."""
    known: int | None = process._popen.returncode  # type: ignore[attr-defined]
    if known is not None:
        return known
    try:
        state = os.waitid(os.P_PID, process.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # reaped a moment ago; its exit code will be available in the next round
        return None
    if state is None:
        return None
    return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
