"""Several processes started here, through torch's elastic agent: the engine of ``torchrun``."""

import atexit
import json
import logging
import logging.config
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pspexp.engine.distributed import create_store, process_info_from_torchrun
from pspexp.errors import Interrupted, JobFailed, UserError
from pspexp.launchers.base import Work
from pspexp.launchers.cluster import address_problems
from pspexp.launchers.supervisor import ProcessSupervisor, handled_signals

log = logging.getLogger(__name__)

KNOWN_PORT_NEEDED = "launcher.master_port=null: several nodes need one that all know; choose a free one, e.g. 29505"


class Elastic:
    """Starts processes on this machine, and together with the same command on other machines.

    Args:
        nproc_per_node: processes on each machine.
        nnodes: machines. The command is given on each of them.
        node_rank: number of this machine, from 0.
        master_addr: machine 0, as the others reach it.
        master_port: port of machine 0 for the processes to meet; None: a free one, if there is one machine.
        max_restarts: how often all processes are started again, from the last save, after one has failed.

    Raises:
        UserError: the numbers do not go together.
    """

    externally_launched, is_restart = False, False

    def __init__(
        self,
        nproc_per_node: int = 1,
        nnodes: int = 1,
        node_rank: int = 0,
        master_addr: str = "127.0.0.1",
        master_port: int | None = None,
        max_restarts: int = 0,
    ) -> None:
        least = {"nproc_per_node": (nproc_per_node, 1), "nnodes": (nnodes, 1), "max_restarts": (max_restarts, 0)}
        problems = [
            f"launcher.{key}={value}: must be {low} or more" for key, (value, low) in least.items() if value < low
        ]
        if nnodes >= 1 and not 0 <= node_rank < nnodes:
            problems.append(f"launcher.node_rank={node_rank}: must be from 0 to {nnodes - 1} (launcher.nnodes - 1)")
        if nnodes > 1 and master_port is None:
            problems.append(KNOWN_PORT_NEEDED)
        problems += address_problems(master_addr, master_port)
        if problems:
            raise UserError(*problems)
        self.nproc_per_node, self.nnodes, self.node_rank = nproc_per_node, nnodes, node_rank
        self.master_addr, self.master_port, self.max_restarts = master_addr, master_port, max_restarts
        self.is_main_process, self.world_size = node_rank == 0, nnodes * nproc_per_node
        self.stopped_by: int | None = None  # the signal that came during the job, which may have finished all the same
        self.stop_asked: Callable[[], int | None] = lambda: None  # another way to ask for a stop than by a signal

    def __call__(self, job: Work) -> float | None:
        """The result of ``job``, done by all processes.

        Raises:
            UserError, Interrupted: as ``job`` does.
            JobFailed: names the process that failed first.
        """
        port, several = self.master_port or 0, self.nnodes > 1
        forget_unknown_start_method()
        # Kept for the whole job: no other can be given the port.
        store = create_store(self.master_addr, port, several_machines=several) if self.is_main_process else None
        with (
            TemporaryDirectory() as folder,
            ProcessSupervisor(self.nproc_per_node, self.max_restarts, self.stop_asked) as keeper,
            quiet_agent(),
        ):
            settings = self._settings(port if store is None else store.port, folder)
            notes = Path(folder, "notes")
            notes.mkdir()
            try:
                ends = elastic_launch(settings, work)(
                    job, notes, log_settings(), self.nproc_per_node, self.max_restarts, os.getpid()
                )
            except ChildFailedError as error:
                if self.is_main_process:
                    job.close_abandoned("KILLED" if keeper.stopped_by else "FAILED")
                keeper.raise_if_stopped()
                raise cause(error, keeper.first_dead, notes) from None
        self.stopped_by = keeper.stopped_by
        end = next(iter(ends.values()))  # of the processes here; all have the same
        if isinstance(end, str):
            raise Interrupted(self.stopped_by or signal.SIGTERM, end)
        result: float | None = end
        return result

    def _settings(self, port: int, folder: str) -> LaunchConfig:
        return LaunchConfig(
            min_nodes=self.nnodes,
            max_nodes=self.nnodes,
            nproc_per_node=self.nproc_per_node,
            run_id="pspexp",
            rdzv_backend="static",
            rdzv_endpoint=f"{self.master_addr}:{port}",
            rdzv_configs={"rank": self.node_rank},
            max_restarts=self.max_restarts,
            start_method="spawn",
            local_addr=self.master_addr if self.is_main_process else None,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )


def forget_unknown_start_method() -> None:
    """Let multiprocessing's default be what a new process knows; joblib's workers name a method of joblib's own."""
    known = multiprocessing.get_all_start_methods()
    if multiprocessing.get_start_method(allow_none=True) not in (None, *known):
        multiprocessing.set_start_method(None, force=True)


def cause(error: ChildFailedError, first_dead: int | None, notes: Path) -> Exception:
    """What a job failed of, when several processes may have failed because one did."""
    if refused := refusals(notes):
        return UserError(*refused)
    by_pid = {failure.pid: (rank, failure) for rank, failure in error.failures.items()}
    rank, failure = by_pid.get(first_dead or 0) or error.get_first_failure()
    return JobFailed(f"process {rank} failed{how(failure)}")


def refusals(notes: Path) -> list[str]:
    """What processes, of this attempt or an earlier one, found wrong with the user's input."""
    found = [problem for note in sorted(notes.iterdir()) for problem in json.loads(note.read_text())]
    return list(dict.fromkeys(found))


def how(failure: ProcessFailure) -> str:
    """The end of a process: its traceback, or the signal that killed it."""
    message: Any = failure.message
    if isinstance(message, dict) and (stack := message.get("extraInfo", {}).get("py_callstack")):
        return f":\n{stack.rstrip()}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        memory = ": out of memory?" if name == "SIGKILL" else ""
        return f", killed by {name} (pid {failure.pid}{memory})"
    return f" with exit code {failure.exitcode} (pid {failure.pid})"


@record
def work(
    job: Work, notes: Path, log_config: dict[str, Any], nproc_per_node: int, max_restarts: int, parent: int
) -> float | str | None:
    """Do ``job`` as one of the processes; what the agent runs. A string tells that, and where, it was stopped."""
    place, done = process_info_from_torchrun(), list[bool]()
    atexit.register(lambda: end_at_once() if done else None)  # after what the job will register
    prepare_logging(log_config, place.rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // nproc_per_node))
    if os.getppid() != parent:  # which died before this process could have the kernel tell it
        os._exit(1)
    with stop_requests(parent) as stop_signal:
        try:
            if refused := refusals(notes):  # to start again mends nothing
                raise UserError(*refused)
            result = job(place, stop_signal)
            take_leave(parent)
            done.append(True)
            return result
        except UserError as error:
            unfinished = notes.parent / f"{place.rank}.{place.restarts}"
            unfinished.write_text(json.dumps(error.problems))
            unfinished.replace(notes / unfinished.name)
            raise
        except Interrupted as error:
            if os.getppid() != parent:  # torch would wait for it to take the result
                os._exit(128 + error.signal_number)
            done.append(True)
            return str(error)
        except Exception:
            if place.restarts < max_restarts:  # else the parent tells
                log.exception("process %d failed, all start again from the last save", place.rank)
            raise


def take_leave(parent: int) -> None:
    """Do not wait for a parent that has died, or dies from now on, to take the result."""

    def leave(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    leave()


def end_at_once() -> None:
    """End this process, whose work is done, without taking Python down first.

    Threads of Gloo may still let go of tensors, for which they need an interpreter; without one they abort the process.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def log_settings() -> dict[str, Any]:
    """How this process logs, in words that `logging.config` takes; from Hydra, which a worker does not run."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return {"version": 1, "disable_existing_loggers": False}
    settings: Any = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return settings  # type: ignore[no-any-return]


def prepare_logging(settings: dict[str, Any], rank: int) -> None:
    """Log as the parent does; the processes that do not lead only tell of their errors."""
    logging.config.dictConfig(settings)
    if rank > 0:
        logging.getLogger().setLevel(logging.ERROR)


@contextmanager
def stop_requests(parent: int) -> Iterator[Callable[[], int | None]]:
    """As `pspexp.launchers.base.stop_requests`, for a process that has a parent to ask for it.

    Ctrl-C reaches all processes of a terminal and is the parent's to answer, which then sends SIGTERM. Other
    systems send SIGTERM to everybody: the second one must not kill. When the parent dies, torch has the kernel
    send SIGINT.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        if number != signal.SIGINT or os.getppid() != parent:
            came.append(signal.SIGTERM)

    for number in {signal.SIGINT, *handled_signals()}:
        signal.signal(number, note)
    yield lambda: came[0] if came else None


@contextmanager
def quiet_agent() -> Iterator[None]:
    """Keep the agent from telling what `cause` tells."""
    agent = logging.getLogger("torch.distributed.elastic"), logging.getLogger("torch.multiprocessing")
    levels = [one.level for one in agent]
    for one in agent:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(agent, levels, strict=True):
            one.setLevel(level)
