"""Launchers for processes that something else has started: torchrun, SLURM."""

import os
import socket
from functools import partial
from pathlib import Path

from pspexp.errors import UserError
from pspexp.launchers.base import Work, stop_requests


class Torchrun:
    """One of the processes that torchrun has started.

    Raises:
        UserError: it has not.
    """

    externally_launched = True

    def __init__(self) -> None:
        from pspexp.engine.distributed import process_info_from_torchrun

        try:
            self.place = process_info_from_torchrun()
        except (KeyError, ValueError) as error:
            what = f"{error} is not" if isinstance(error, KeyError) else f"something that is no number ({error}) is"
            raise UserError(
                f"launcher=torchrun: {what} in the environment; start with "
                "'torchrun --nproc-per-node=2 -m pspexp …', or let launcher=ddp start the processes"
            ) from error
        self.is_main_process, self.world_size = self.place.rank == 0, self.place.size
        self.is_restart = self.place.restarts > 0

    def __call__(self, work: Work) -> float | None:
        """The result of ``work``; a failure is left where torchrun looks for it."""
        from torch.distributed.elastic.multiprocessing.errors import record

        with stop_requests(patient=True) as stop_signal:
            result: float | None = record(work)(self.place, stop_signal)
            return result


class Slurm:
    """One of the tasks of a SLURM job step, started by ``srun``.

    Args:
        rendezvous_dir: a folder that all nodes share, in which the first process tells the others where it listens.
        master_addr, master_port: where it listens instead, known to all beforehand. Two jobs must not use one port.

    Raises:
        UserError: this is no SLURM task.
    """

    externally_launched = True

    def __init__(
        self, rendezvous_dir: str = "outputs/.slurm", master_addr: str | None = None, master_port: int | None = None
    ) -> None:
        from pspexp.engine.distributed import ProcessInfo, rendezvous_store

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
            rendezvous_store,
            Path(rendezvous_dir) / f"{job}.{step}.{restarts}",
            is_main_process=rank == 0,
            address=None if master_addr is None or master_port is None else (master_addr, master_port),
            several_machines=os.environ.get("SLURM_NNODES", "1") != "1",
        )
        self.place = ProcessInfo(rank, size, local_rank, store, restarts)
        self.is_main_process, self.world_size, self.is_restart = rank == 0, size, restarts > 0

    def __call__(self, work: Work) -> float | None:
        """The result of ``work``."""
        with stop_requests(patient=True) as stop_signal:
            result: float | None = work(self.place, stop_signal)
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
