"""From a checked configuration to the job that ``mode`` names, in one process or many."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import get_object
from omegaconf import DictConfig

from pspexp.config.build import build, init_distributed
from pspexp.config.modes import MODES
from pspexp.data.workers import no_shared_memory, shared_memory_is_full
from pspexp.engine.checkpoint import what_is_kept
from pspexp.engine.device import Device
from pspexp.engine.distributed import ProcessInfo, World
from pspexp.errors import Interrupted, JobFailed, as_yaml, setting
from pspexp.jobs.records import Request, close_abandoned, public
from pspexp.launchers.base import Launcher, StopSignal
from pspexp.tracking import runs
from pspexp.tracking.logger import Status
from pspexp.tracking.provenance import command_line
from pspexp.utils.files import describe_disk_error, disk_error
from pspexp.utils.memory import keep_freed_memory
from pspexp.utils.trees import flatten

log = logging.getLogger(__name__)


class Job(Request):
    """A request that can be sent to the processes that carry it out."""

    def __call__(self, process: ProcessInfo, stop_signal: StopSignal) -> float | None:
        """Run the job in one process; returns the value that a sweeper optimises.

        Raises:
            UserError: The input is wrong.
            Interrupted: ``stop_signal`` requested to stop.
        """
        device, world = init_distributed(self.config, process)
        if device.type == "cpu":
            keep_freed_memory()
        same_configuration(self.config, device, world)
        folder = world.broadcast_from_main(lambda: self.folder)
        job = replace(self, folder=folder, is_restart=self.is_restart or process.restart_count > 0)
        # The processes of a killed launcher may still be saving when the next one starts.
        with runs.run_dir_lock(folder, runs.WRITER_LOCK, wait=True) if world.is_main_process else nullcontext():
            existed = folder.exists()
            try:
                result: float | None = get_object(MODES[job.config.mode].function)(job, device, world, stop_signal)
            except Interrupted:  # at the same step in all processes; none may end before process 0 has saved
                world.close()
                raise
            except (OSError, RuntimeError) as error:
                if (cause := disk_error(error)) is None:
                    if existed and isinstance(error, FileNotFoundError) and not folder.exists():
                        resume = f", then continue with {setting('checkpoint.resume', 'auto')}"
                        advice = f"restore it{resume if job.config.mode == 'train' else ''}"
                        text = f"{folder}: was moved or deleted, or its disk was removed; {advice}"
                        raise JobFailed(text) from error
                    raise
                if cause.filename is None and shared_memory_is_full():  # where processes keep their locks
                    raise JobFailed(no_shared_memory()) from error
                text = describe_disk_error(cause, Path(cause.filename or folder))
                kept = f"; {what_is_kept(folder / 'checkpoints')}" if job.config.mode == "train" else ""
                raise JobFailed(text + kept) from error
            world.close()
        return result

    def close_abandoned(self, status: Status) -> None:
        """Close the records if the processes could not."""
        if MODES[self.config.mode].keeps_records:
            close_abandoned(self, status)


def same_configuration(config: DictConfig, device: Device, world: World) -> None:
    """Refuse processes with different configurations, or on different kinds of device.

    Raises:
        UserError: Names the keys in which another process differs from process 0.
    """
    flats = world.all_gather_object({**flatten(public(config)), "device": device.type, "torch": torch.__version__})
    world.raise_collectively(
        [
            f"{key}={as_yaml(flat.get(key))}: in process {rank}, but {as_yaml(flats[0].get(key))} in process 0; "
            "start all processes alike"
            for rank, flat in enumerate(flats)
            for key in sorted(flats[0].keys() | flat.keys())
            if flat.get(key) != flats[0].get(key) and not key.startswith("launcher.")
        ]
    )


def launch(config: DictConfig, folder: Path, overrides: list[str], command: Sequence[str] = ()) -> float | None:
    """Run the job that ``config.mode`` names; returns the value that a sweeper optimises.

    Args:
        config: Complete and checked.
        folder: The run folder.
        overrides: The job's overrides.
        command: The command line, program included, if this process was started by it.
    """
    if needs_no_processes(config, folder):
        return None
    launcher: Launcher = build(config.launcher)
    job = Job(config, folder, overrides, command_line(command, overrides))
    if not launcher.is_main_process:
        return launcher(job)
    with runs.run_dir_lock(folder):
        return launcher(job)


def needs_no_processes(config: DictConfig, folder: Path) -> bool:
    """Whether the mode is not a run; if so, the job is done here."""
    mode = MODES[config.mode]
    if not mode.is_run:
        get_object(mode.function)(config, folder)
    return not mode.is_run
