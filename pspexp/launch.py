"""How processes come to be (so far: the one that is running), and how they are asked to stop."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from omegaconf import DictConfig

Result = TypeVar("Result")


class Single:
    """Runs the job in this process."""

    def __call__(self, job: Callable[[], Result]) -> Result:
        """The result of ``job``."""
        return job()


def launch(config: DictConfig, folder: Path, overrides: list[str]) -> float | None:
    """Run the job that ``config.mode`` names; returns what a sweeper compares."""
    # Torch, timm and the rest take seconds to import: not for --help.
    from pspexp import doctor, run
    from pspexp.assembly import build
    from pspexp.tracking import runs

    if config.mode == "check":
        doctor.check(config)
        return None
    with runs.claimed(folder), stop_requests() as stop_signal:
        launcher = build(config.launcher)
        result: float | None = launcher(lambda: run.JOBS[config.mode](config, folder, overrides, stop_signal))
        return result


@contextmanager
def stop_requests() -> Iterator[Callable[[], int | None]]:
    """Note SIGINT and SIGTERM instead of dying of them; the job asks between two steps whether one came.

    A second signal acts at once, for whoever does not want to wait for the end of a step.
    """
    came: list[int] = []
    # Only the main thread may set handlers; in others (some sweep launchers) signals stay as they are.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield lambda: came[0] if came else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
