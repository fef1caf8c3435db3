"""How processes come to be: this one alone, several that are started here, or several that were started already."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from omegaconf import DictConfig

from pspexp.errors import UserError

# Torch, timm and the rest take seconds to import: not for --help. So they are imported in functions here.


class Launcher(Protocol):
    """Has one or several processes do a job."""

    leads: bool  # this process (or one that it starts) writes the records
    placed: bool  # other processes were started beside this one
    world_size: int
    again: bool  # the job was begun before, and its processes were started again

    def __call__(self, job: Any) -> float | None:
        """Have a `pspexp.run.Job` done; returns its result."""
        ...


class Single:
    """Does the job in this process, alone."""

    leads, placed, world_size, again = True, False, 1, False

    def __call__(self, job: Any) -> float | None:
        """The result of ``job``."""
        from pspexp.distributed import Place

        with stop_requests() as stop_signal:
            result: float | None = job(Place(), stop_signal)
            return result


class Torchrun:
    """One of the processes that torchrun has started.

    Raises:
        UserError: it has not.
    """

    placed = True

    def __init__(self) -> None:
        from pspexp.distributed import placed_by_torch

        try:
            self.place = placed_by_torch()
        except (KeyError, ValueError) as error:
            what = f"{error} is not" if isinstance(error, KeyError) else f"something that is no number ({error}) is"
            raise UserError(
                f"launcher=torchrun: {what} in the environment; start with "
                "'torchrun --nproc-per-node=2 -m pspexp …', or let launcher=ddp start the processes"
            ) from error
        self.leads, self.world_size = self.place.rank == 0, self.place.size
        self.again = self.place.restarts > 0

    def __call__(self, job: Any) -> float | None:
        """The result of ``job``; a failure is left where torchrun looks for it."""
        from torch.distributed.elastic.multiprocessing.errors import record

        with stop_requests(patient=True) as stop_signal:
            result: float | None = record(job)(self.place, stop_signal)
            return result


class Slurm:
    """One of the tasks of a SLURM job step, started by ``srun``.

    Args:
        meeting_folder: a folder that all nodes share, in which the first process tells the others where it listens.
        master_addr, master_port: where it listens instead, known to all beforehand. Two jobs must not use one port.

    Raises:
        UserError: this is no SLURM task.
    """

    placed = True

    def __init__(
        self, meeting_folder: str = "outputs/.slurm", master_addr: str | None = None, master_port: int | None = None
    ) -> None:
        from pspexp.distributed import Place, meeting_store

        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID")
        values = {name: os.environ.get(name, "") for name in names}
        if wrong := [f"{name}={value}" for name, value in values.items() if not value.isdigit()]:
            raise UserError(
                f"launcher=slurm: {', '.join(wrong)} in the environment, where srun would have put numbers; start with "
                "'srun … python -m pspexp …' inside a SLURM job (docs/cluster.md), or use launcher=ddp"
            )
        rank, size, local_rank, job, step = (int(value) for value in values.values())
        problems = address_problems(master_addr, master_port)
        if (master_addr is None) != (master_port is None):
            problems.append(
                f"launcher.master_addr={master_addr}, launcher.master_port={master_port}: give both or none"
            )
        if problems:
            raise UserError(*problems)
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        os.environ["RANK"] = str(rank)  # for the log format of processes that do not lead
        store = partial(
            meeting_store,
            Path(meeting_folder) / f"{job}.{step}.{restarts}",
            leads=rank == 0,
            address=None if master_addr is None or master_port is None else (master_addr, master_port),
            several_machines=os.environ.get("SLURM_NNODES", "1") != "1",
        )
        self.place = Place(rank, size, local_rank, store, restarts)
        self.leads, self.world_size, self.again = rank == 0, size, restarts > 0

    def __call__(self, job: Any) -> float | None:
        """The result of ``job``."""
        with stop_requests(patient=True) as stop_signal:
            result: float | None = job(self.place, stop_signal)
            return result


def address_problems(host: str | None, port: int | None) -> list[str]:
    """What is wrong with the place where processes are to meet."""
    problems = []
    if port is not None and not 0 < port < 2**16:
        problems.append(f"launcher.master_port={port}: must be from 1 to {2**16 - 1}")
    try:
        if host is not None:
            socket.getaddrinfo(host, None)
    except OSError as error:
        problems.append(
            f"launcher.master_addr={host}: unknown here ({error.strerror}); give machine 0's name or address"
        )
    return problems


def launch(config: DictConfig, folder: Path, overrides: list[str], typed: Sequence[str] = ()) -> float | None:
    """Do the job that ``config.mode`` names; returns what a sweeper compares.

    Args:
        config: complete and checked.
        folder: the run folder.
        overrides: the job's own words.
        typed: the whole command, where this process was started by it.
    """
    from pspexp.assembly import build
    from pspexp.run import Job
    from pspexp.tracking import runs
    from pspexp.tracking.provenance import command_line

    if needs_no_processes(config, folder):
        return None
    launcher: Launcher = build(config.launcher)
    job = Job(config, folder, overrides, command_line(typed, overrides))
    if not launcher.leads:
        return launcher(job)
    with runs.claimed(folder):
        return launcher(job)


def needs_no_processes(config: DictConfig, folder: Path) -> bool:
    """Do the job if it is one that is no run; whether it was."""
    if config.mode == "check":
        from pspexp import doctor

        doctor.check(config)
    elif config.mode == "compare":
        from pspexp.compare import compare

        compare(config, folder)
    return config.mode in ("check", "compare")


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
