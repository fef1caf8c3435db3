"""Runs a sweep, from its first job to its overview."""

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.utils import get_object
from omegaconf import DictConfig

from pspexp.errors import EXIT_USER_ERROR, UserError
from pspexp.launchers.base import stop_signals
from pspexp.sweep import overview
from pspexp.sweep.devices import is_basic
from pspexp.sweep.jobs import FAILED_MARK, STOPPED_MARK
from pspexp.sweep.numbering import numbered_jobs
from pspexp.sweep.sweep import Sweep
from pspexp.sweep.watchdog import processes_end_with_this_one
from pspexp.tracking import runs

log = logging.getLogger(__name__)


def refuse_several_processes(config: DictConfig) -> None:
    """Raise UserError if each of several processes would begin a sweep of its own."""
    if get_object(config.launcher._target_).externally_launched or config.launcher.get("nnodes", 1) != 1:
        raise UserError(
            f"launcher={config.hydra.runtime.choices.launcher}: a sweep cannot be started by several processes; "
            "start it once, with launcher=ddp on one machine for several processes per job"
        )


def run_sweep(sweep: Sweep, config: DictConfig, run_jobs: Callable[[], int]) -> int:
    """Run a sweep and report its results; returns the exit code.

    Args:
        sweep: The sweep.
        config: The configuration composed from its command line, ``hydra`` included.
        run_jobs: Function that runs the jobs through Hydra and returns an exit code.
    """
    failed, stopped = sweep.folder / FAILED_MARK, sweep.folder / STOPPED_MARK
    with runs.run_dir_lock(sweep.folder), processes_end_with_this_one():  # also while the results are reported
        failed.unlink(missing_ok=True)
        stopped.unlink(missing_ok=True)
        with (
            numbered_jobs(),
            jobs_logs_closed(),
            stop_recorded(stopped, at_once=is_basic(config.hydra.launcher)) as received,
        ):
            try:
                code = run_jobs()
            except Exception:  # with HYDRA_FULL_ERROR=1 Hydra does not catch it
                traceback.print_exc()
                code = 1
        code = 128 + received[0] if received else code
        complete = overview.report_sweep(sweep, config, stopped=code > 128)
    if code == EXIT_USER_ERROR and overview.collect(sweep):  # the launcher failed, not the command
        return 1
    return code or (0 if complete and not failed.exists() else 1)


@contextmanager
def jobs_logs_closed() -> Iterator[None]:
    """Close the last job's log, which Hydra's basic launcher leaves open: later messages concern the whole sweep."""
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        yield
    finally:
        for handler in [one for one in root.handlers if isinstance(one, logging.FileHandler) and one not in before]:
            root.removeHandler(handler)
            handler.close()


@contextmanager
def stop_recorded(mark: Path, *, at_once: bool) -> Iterator[list[int]]:
    """On SIGINT or SIGTERM, stop a sweep after its jobs have saved; yields the list of received signals.

    Args:
        mark: File that requests jobs in other processes to stop. They are waited for, unless a second signal arrives.
        at_once: Whether to exit immediately, since no jobs run in other processes, and a job in this process handles
            signals itself.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        mark.touch()
        if at_once or len(received) > 1:
            sys.exit(128 + number)
        log.warning("stopping: waiting for the jobs to save")

    numbers = stop_signals() & {signal.SIGINT, signal.SIGTERM}  # an ignored one stays ignored
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
