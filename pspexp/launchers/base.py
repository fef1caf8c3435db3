"""What a launcher is, and the plainest one: the job in this process, alone."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pspexp.engine.distributed import ProcessInfo

# torch takes seconds to import, and --help needs none of it: it is imported in functions here.

StopSignal = Callable[[], int | None]
"""The number of the signal that asked to stop, or None; polled between steps."""


class Work(Protocol):
    """What a launcher runs in every process; it can be pickled."""

    def __call__(self, process: "ProcessInfo", stop_signal: StopSignal) -> float | None:
        """Run as ``process``; the result is what a sweeper compares."""
        ...

    def close_abandoned(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Close the records that the processes left open, because they were killed."""
        ...


class Launcher(Protocol):
    """Runs a job in one or several processes."""

    is_main_process: bool  # this process, or one that it starts, writes the records
    externally_launched: bool  # something else has started the other processes
    world_size: int
    is_restart: bool  # the job had begun before, and its processes were restarted

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` and return its result."""
        ...


class Single:
    """Runs the job in this process, alone."""

    is_main_process, externally_launched, world_size, is_restart = True, False, 1, False

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` and return its result."""
        from pspexp.engine.distributed import ProcessInfo

        with stop_requests() as stop_signal:
            return work(ProcessInfo(), stop_signal)


@contextmanager
def stop_requests(*, patient: bool = False) -> Iterator[Callable[[], int | None]]:
    """Note SIGINT and SIGTERM instead of dying of them; the job asks between two steps whether one came.

    A second signal acts at once, for whoever does not want to wait for the end of a step.

    Args:
        patient: note further ones, too: who started the processes may pass on a signal that all have had.
    """
    came: list[int] = []
    # Only the main thread may set handlers; in others (some sweep launchers) signals stay as they are.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not patient:
            signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
