"""Launchers for processes that are started externally: torchrun, SLURM."""

import os
import socket
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pspexp.errors import ArgumentError, UserError, setting
from pspexp.launchers.base import Work, catch_stop_signals
from pspexp.utils.arguments import checked

Port = Annotated[int, Field(ge=1, lt=2**16)]


class Torchrun:
    """One of the processes started by torchrun.

    Raises:
        UserError: this process was not started by torchrun.
    """

    externally_launched = True

    def __init__(self) -> None:
        from pspexp.engine.distributed import process_info_from_torchrun

        try:
            self.process = process_info_from_torchrun()
        except (KeyError, ValueError) as error:
            problem = f"{error} is not set" if isinstance(error, KeyError) else f"expected a number ({error})"
            raise UserError(
                f"{setting('launcher', 'torchrun')}: {problem} in the environment; start with 'torchrun "
                f"--nproc-per-node=2 -m pspexp …', or use {setting('launcher', 'ddp')}"
            ) from error
        self.is_main_process, self.world_size = self.process.rank == 0, self.process.world_size
        self.is_restart = self.process.restart_count > 0

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` and return its result; a failure is recorded where torchrun looks for it."""
        from torch.distributed.elastic.multiprocessing.errors import record

        with catch_stop_signals(repeatedly=True) as stop_signal:
            result: float | None = record(work)(self.process, stop_signal)
            return result


class Slurm:
    """One of the tasks of a SLURM job step, started by ``srun``.

    Args:
        rendezvous_dir: folder on a file system shared by all nodes, where process 0 publishes its address.
        master_addr: fixed address of process 0, instead of the published one.
        master_port: port of process 0, given together with ``master_addr``. Two jobs must not use the same port.

    Raises:
        UserError: this process is not a SLURM task.
        ArgumentError: the address is wrong or incomplete.
    """

    externally_launched = True

    @checked
    def __init__(
        self, rendezvous_dir: str = "outputs/.slurm", master_addr: str | None = None, master_port: Port | None = None
    ) -> None:
        from pspexp.engine.distributed import ProcessInfo, rendezvous_store

        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID")
        values = {name: os.environ.get(name, "") for name in names}
        if wrong := [f"{name}={value}" for name, value in values.items() if not value.isdigit()]:
            raise UserError(
                f"{setting('launcher', 'slurm')}: {', '.join(wrong)} in the environment: must be numbers, set by srun; "
                "start with 'srun … python -m pspexp …' inside a SLURM job (docs/cluster.md), or use "
                f"{setting('launcher', 'ddp')}"
            )
        rank, world_size, local_rank, job, step = (int(value) for value in values.values())
        problems = address_problems(master_addr)
        if (master_addr is None) != (master_port is None):
            missing, given = ("master_addr", "master_port") if master_addr is None else ("master_port", "master_addr")
            problems.append(f"{missing}=null: must be set together with {given}; set both or neither")
        if problems:
            raise ArgumentError(*problems)
        restart_count = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        make_store = partial(
            rendezvous_store,
            Path(rendezvous_dir) / f"{job}.{step}.{restart_count}",
            is_main_process=rank == 0,
            address=None if master_addr is None or master_port is None else (master_addr, master_port),
            several_machines=os.environ.get("SLURM_NNODES", "1") != "1",
        )
        self.process = ProcessInfo(rank, world_size, local_rank, make_store, restart_count)
        self.is_main_process, self.world_size, self.is_restart = rank == 0, world_size, restart_count > 0

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` and return its result."""
        with catch_stop_signals(repeatedly=True) as stop_signal:
            result: float | None = work(self.process, stop_signal)
            return result


def address_problems(master_addr: str | None) -> list[str]:
    """What is wrong with the address of process 0."""
    try:
        if master_addr is not None:
            socket.getaddrinfo(master_addr, None)
    except OSError as error:
        return [
            f"master_addr={master_addr}: cannot be resolved ({error.strerror}); give the name or address of machine 0"
        ]
    return []
