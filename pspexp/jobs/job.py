"""From a checked configuration to the job that ``mode`` names, in one process or many."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from pspexp.config.build import build, init_distributed
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.errors import Interrupted
from pspexp.jobs.records import Request, close_abandoned, public
from pspexp.jobs.test import test
from pspexp.jobs.train import train
from pspexp.launchers.base import Launcher, StopSignal
from pspexp.tracking import runs
from pspexp.tracking.logger import Status
from pspexp.tracking.provenance import command_line
from pspexp.utils.trees import flatten

log = logging.getLogger(__name__)


class Job(Request):
    """A request that processes can carry out; it can be sent to them."""

    def __call__(self, process: ProcessInfo, stop_signal: StopSignal) -> float | None:
        """Do it, as the process ``process``; returns what a sweeper compares.

        Raises:
            UserError: the input is wrong.
            Interrupted: ``stop_signal`` asked to stop.
        """
        device, world = init_distributed(self.config, process)
        same_configuration(self.config, device, world)
        folder = world.broadcast_from_main(lambda: self.folder)
        job = replace(self, folder=folder, is_restart=self.is_restart or process.restart_count > 0)
        # Who launched it may be gone, and another have come, while this one still saves.
        with runs.run_dir_lock(folder, runs.WRITER_LOCK, wait=True) if world.is_main_process else nullcontext():
            try:
                result: float | None = JOBS[job.config.mode](job, device, world, stop_signal)
            except Interrupted:  # all were, at one step; nobody may end before the first process has saved
                world.close()
                raise
            world.close()
        return result

    def close_abandoned(self, status: Status) -> None:
        """End the records if the processes could not."""
        close_abandoned(self, status)


def same_configuration(config: DictConfig, device: Device, world: World) -> None:
    """Refuse to begin with processes that were started with different words, or on different kinds of device.

    Raises:
        UserError: names the keys in which another process differs from the first.
    """
    flats = world.all_gather_object({**flatten(public(config)), "device": device.type, "torch": torch.__version__})
    world.raise_collectively(
        [
            f"{key}={flat.get(key)}: process {rank} has this, process 0 has {flats[0].get(key)}; give all the same"
            for rank, flat in enumerate(flats)
            for key in sorted(flats[0].keys() | flat.keys())
            if flat.get(key) != flats[0].get(key) and not key.startswith("launcher.")
        ]
    )


JOBS = {"train": train, "test": test}


def launch(config: DictConfig, folder: Path, overrides: list[str], typed: Sequence[str] = ()) -> float | None:
    """Do the job that ``config.mode`` names; returns what a sweeper compares.

    Args:
        config: complete and checked.
        folder: the run folder.
        overrides: the job's own words.
        typed: the whole command, where this process was started by it.
    """
    if needs_no_processes(config, folder):
        return None
    launcher: Launcher = build(config.launcher)
    job = Job(config, folder, overrides, command_line(typed, overrides))
    if not launcher.is_main_process:
        return launcher(job)
    with runs.run_dir_lock(folder):
        return launcher(job)


def needs_no_processes(config: DictConfig, folder: Path) -> bool:
    """Do the job if it is one that is no run; whether it was."""
    if config.mode == "check":
        from pspexp.jobs.check import check

        check(config)
    elif config.mode == "compare":
        from pspexp.jobs.compare import compare

        compare(config, folder)
    return config.mode in ("check", "compare")
