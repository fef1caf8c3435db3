"""A sweep from its first job to its table, whatever ends it."""

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from pspexp.errors import EXIT_USER_ERROR
from pspexp.launchers.base import stop_signals
from pspexp.sweep import overview
from pspexp.sweep.devices import is_basic
from pspexp.sweep.jobs import FAILED_MARK, STOPPED_MARK
from pspexp.sweep.sweep import Sweep
from pspexp.tracking import runs

log = logging.getLogger(__name__)


def run_sweep(sweep: Sweep, config: DictConfig, run_jobs: Callable[[], int]) -> int:
    """Run a sweep and tell how it ended; returns the exit code.

    Args:
        sweep: to run.
        config: composed from its command, ``hydra`` included.
        run_jobs: lets Hydra run the jobs; returns an exit code.
    """
    failed, stopped = sweep.folder / FAILED_MARK, sweep.folder / STOPPED_MARK
    with runs.run_dir_lock(sweep.folder):
        failed.unlink(missing_ok=True)
        stopped.unlink(missing_ok=True)
        with jobs_logs_closed(), stop_noted(stopped, at_once=is_basic(config.hydra.launcher)) as came:
            try:
                code = run_jobs()
            except Exception:  # with HYDRA_FULL_ERROR=1 Hydra lets it through
                traceback.print_exc()
                code = 1
        code = 128 + came[0] if came else code
        complete = overview.finish(sweep, config, stopped=code > 128)
    if code == EXIT_USER_ERROR and overview.collect(sweep):  # the launcher failed, not the command
        return 1
    return code or (0 if complete and not failed.exists() else 1)


@contextmanager
def jobs_logs_closed() -> Iterator[None]:
    """Close the log of the last job, which Hydra's basic launcher leaves open: what follows is about all of them."""
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        yield
    finally:
        for handler in [one for one in root.handlers if isinstance(one, logging.FileHandler) and one not in before]:
            root.removeHandler(handler)
            handler.close()


@contextmanager
def stop_noted(mark: Path, *, at_once: bool) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end a sweep with its jobs saved and its overview written; yields the signals that came.

    Args:
        mark: a file that tells the jobs in other processes. They are waited for; a second signal is not.
        at_once: there are none: while a job runs here it heeds signals itself, and between two jobs nothing is lost.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        mark.touch()
        if at_once or len(came) > 1:
            sys.exit(128 + number)
        log.warning("stopping: waiting for the jobs to save")

    numbers = stop_signals() & {signal.SIGINT, signal.SIGTERM}  # an ignored one stays ignored
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
