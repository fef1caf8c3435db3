"""The launcher interface, and the launcher that runs the job in this process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pspexp.engine.distributed import ProcessInfo

# torch takes seconds to import and --help does not need it, so it is imported inside functions here.

STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
StopSignal = Callable[[], int | None]
"""Returns the number of the signal that requested a stop, or None; polled between steps."""


class Work(Protocol):
    """What a launcher runs in every process; must be picklable."""

    def __call__(self, process: "ProcessInfo", stop_signal: StopSignal) -> float | None:
        """Run as ``process`` and return the value that a sweeper optimises."""
        ...

    def close_abandoned(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Close the records of processes that were killed before they could do so."""
        ...


class Launcher(Protocol):
    """Runs a job in one or several processes."""

    is_main_process: bool  # this process, or one that it starts, writes the records
    externally_launched: bool  # the processes are started by something else
    world_size: int
    is_restart: bool  # the job had begun before, and its processes were restarted

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` and return its result."""
        ...


class Single:
    """Runs the job in this process."""

    is_main_process, externally_launched, world_size, is_restart = True, False, 1, False

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` and return its result."""
        from pspexp.engine.distributed import ProcessInfo

        with catch_stop_signals() as stop_signal:
            return work(ProcessInfo(), stop_signal)


@contextmanager
def catch_stop_signals(*, repeatedly: bool = False) -> Iterator[StopSignal]:
    """Record SIGINT and SIGTERM so that the job can poll for them between steps.

    Args:
        repeatedly: also record further signals, because the parent may forward one that all its processes
            have already received. By default a second signal acts at once, before the step has ended.
    """
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in stop_signals() & {signal.SIGINT, signal.SIGTERM}}

    def record(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not repeatedly:
            signal.signal(number, handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop_signals() -> set[signal.Signals]:
    """The stop signals that this thread may handle and that are not ignored, as by ``nohup`` or in the background."""
    if threading.current_thread() is not threading.main_thread():  # e.g. in some sweep launchers
        return set()
    return {number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}
