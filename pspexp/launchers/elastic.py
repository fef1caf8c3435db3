"""Several processes started from here through torch's elastic agent, the engine of ``torchrun``."""

import atexit
import json
import logging
import logging.config
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pspexp.engine.distributed import create_store, process_info_from_torchrun
from pspexp.errors import ArgumentError, Interrupted, JobFailed, UserError
from pspexp.launchers.base import StopSignal, Work, stop_signals
from pspexp.launchers.cluster import Port, address_problems
from pspexp.launchers.fork_server import Inheritance
from pspexp.launchers.supervisor import ProcessSupervisor
from pspexp.utils.arguments import checked
from pspexp.utils.files import write_text_atomic

log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=1)]


class Elastic:
    """Starts processes on this machine, together with the same command on the other machines, if any.

    Args:
        nproc_per_node: number of processes on each machine.
        nnodes: number of machines. The command is run on each of them.
        node_rank: number of this machine, from 0.
        master_addr: address of machine 0, reachable from the others.
        master_port: rendezvous port on machine 0; None chooses a free one and needs ``nnodes=1``.
        max_restarts: how often all processes are restarted from the last checkpoint after one has failed.

    Raises:
        ArgumentError: the arguments are out of range or contradict each other.
    """

    externally_launched, is_restart = False, False

    @checked
    def __init__(
        self,
        nproc_per_node: Count = 1,
        nnodes: Count = 1,
        node_rank: Annotated[int, Field(ge=0)] = 0,
        master_addr: str = "127.0.0.1",
        master_port: Port | None = None,
        max_restarts: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        problems = address_problems(master_addr)
        if node_rank >= nnodes:
            problems.append(f"node_rank={node_rank}: must be from 0 to {nnodes - 1} (nnodes - 1)")
        if nnodes > 1 and master_port is None:
            problems.append("master_port=null: must be the same on all machines; choose a free port, e.g. 29505")
        if problems:
            raise ArgumentError(*problems)
        self.nproc_per_node, self.nnodes, self.node_rank = nproc_per_node, nnodes, node_rank
        self.master_addr, self.master_port, self.max_restarts = master_addr, master_port, max_restarts
        self.is_main_process, self.world_size = node_rank == 0, nnodes * nproc_per_node
        self.stopped_by: int | None = None  # signal received during the job, which may have finished nevertheless
        self.poll_stop: StopSignal = lambda: None  # source of stop requests other than signals
        self.start_method: Literal["spawn", "forkserver"] = "spawn"

    def __call__(self, work: Work) -> float | None:
        """Run ``work`` in all processes and return its result.

        Raises:
            UserError, Interrupted: raised by ``work``.
            JobFailed: a process failed; names the one that failed first.
        """
        port, several_machines = self.master_port or 0, self.nnodes > 1
        reset_foreign_start_method()
        # Kept open for the whole job, so that the port cannot be given to another one.
        store = (
            create_store(self.master_addr, port, several_machines=several_machines) if self.is_main_process else None
        )
        with (
            TemporaryDirectory() as folder,
            ProcessSupervisor(self.nproc_per_node, self.max_restarts, self.poll_stop) as supervisor,
            elastic_logging_disabled(),
        ):
            launch_config = self._launch_config(port if store is None else store.port, folder)
            reports = Path(folder, "problems")
            reports.mkdir()
            try:
                results = elastic_launch(launch_config, run_worker)(
                    work,
                    reports,
                    logging_config(),
                    self.nproc_per_node,
                    self.max_restarts,
                    Inheritance.of_this_process(),
                )
            except ChildFailedError as error:
                if self.is_main_process:
                    work.close_abandoned("KILLED" if supervisor.stopped_by else "FAILED")
                supervisor.raise_if_stopped()
                raise job_error(error, supervisor.first_failed_pid, reports) from None
        self.stopped_by = supervisor.stopped_by
        result: float | str | None = next(iter(results.values()))  # the same in all processes
        if isinstance(result, str):
            raise Interrupted(self.stopped_by or signal.SIGTERM, result)
        return result

    def _launch_config(self, port: int, log_dir: str) -> LaunchConfig:
        return LaunchConfig(
            min_nodes=self.nnodes,
            max_nodes=self.nnodes,
            nproc_per_node=self.nproc_per_node,
            run_id="pspexp",
            rdzv_backend="static",
            rdzv_endpoint=f"{self.master_addr}:{port}",
            rdzv_configs={"rank": self.node_rank},
            max_restarts=self.max_restarts,
            start_method=self.start_method,
            local_addr=self.master_addr if self.is_main_process else None,
            logs_specs=DefaultLogsSpecs(log_dir=log_dir),
        )


def reset_foreign_start_method() -> None:
    """Undo a multiprocessing start method that new processes do not know: joblib's workers set joblib's own."""
    known = multiprocessing.get_all_start_methods()
    if multiprocessing.get_start_method(allow_none=True) not in (None, *known):
        multiprocessing.set_start_method(None, force=True)


def job_error(error: ChildFailedError, first_failed_pid: int | None, reports: Path) -> Exception:
    """The error that made a job fail: that of the process which failed first, or all problems with the input."""
    if problems := reported_problems(reports):
        return UserError(*problems)
    for file in sorted(reports.glob("*.failed")):
        return JobFailed(file.read_text(encoding="utf-8", errors="surrogateescape"))
    by_pid = {failure.pid: (rank, failure) for rank, failure in error.failures.items()}
    rank, failure = by_pid.get(first_failed_pid or 0) or error.get_first_failure()
    return JobFailed(f"process {rank} failed{describe_failure(failure)}")


def reported_problems(reports: Path) -> list[str]:
    """The problems with the user's input that the processes have found, in this attempt or an earlier one."""
    problems = [problem for file in sorted(reports.glob("*.json")) for problem in json.loads(file.read_text())]
    return list(dict.fromkeys(problems))


def describe_failure(failure: ProcessFailure) -> str:
    """How a process ended: its traceback, the signal that killed it, or its exit code."""
    message: Any = failure.message
    if isinstance(message, dict) and (stack := message.get("extraInfo", {}).get("py_callstack")):
        return f":\n{stack.rstrip()}"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f", killed by {name} (pid {failure.pid}{hint})"
    return f" with exit code {failure.exitcode} (pid {failure.pid})"


@record
def run_worker(
    work: Work,
    reports: Path,
    log_config: dict[str, Any],
    nproc_per_node: int,
    max_restarts: int,
    inheritance: Inheritance,
) -> float | str | None:
    """Entry point of each process that the agent starts: run ``work``.

    Returns:
        The result of ``work``, or, if it was stopped, the message that says where.
    """
    process, completed = process_info_from_torchrun(), list[bool]()
    # Registered first, so that it runs after everything that the job registers.
    atexit.register(lambda: exit_without_teardown() if completed else None)
    configure_logging(log_config, process.rank)
    inheritance.apply()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // nproc_per_node))
    with catch_worker_signals() as stop_signal:
        try:
            if problems := reported_problems(reports):  # a restart cannot fix wrong input
                raise UserError(*problems)
            result = work(process, stop_signal)
            exit_when_orphaned()
            completed.append(True)
            return result
        except UserError as error:
            write_text_atomic(reports / f"{process.rank}.{process.restart_count}.json", json.dumps(error.problems))
            raise
        except JobFailed as error:
            write_text_atomic(reports / f"{process.rank}.{process.restart_count}.failed", str(error))
            raise
        except Interrupted as error:
            if is_orphaned():  # torch would wait for the parent to receive the result
                os._exit(128 + error.signal_number)
            completed.append(True)
            return str(error)
        except Exception:
            if process.restart_count < max_restarts:  # after the last attempt the parent reports the error
                log.exception("process %d failed; restarting all processes from the last checkpoint", process.rank)
            raise


def is_orphaned() -> bool:
    """Whether the process that has started this one has died."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def exit_when_orphaned() -> None:
    """Exit as soon as the parent has died, which handles Ctrl-C: torch would wait for it to receive the result."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=wait, daemon=True).start()


def exit_without_teardown() -> None:
    """Exit this process, whose work is done, without finalising the interpreter.

    Gloo's threads may still release tensors, for which they need the interpreter; without it they abort the process.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def logging_config() -> dict[str, Any]:
    """How this process logs, as a dictionary for `logging.config`: Hydra's setting, as workers do not run Hydra."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    if not HydraConfig.initialized():
        return {"version": 1, "disable_existing_loggers": False}
    settings: Any = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return settings  # type: ignore[no-any-return]


def configure_logging(settings: dict[str, Any], rank: int) -> None:
    """Log as the parent does; processes other than the main one log errors only."""
    logging.config.dictConfig(settings)
    if rank > 0:
        logging.getLogger().setLevel(logging.ERROR)


@contextmanager
def catch_worker_signals() -> Iterator[StopSignal]:
    """`pspexp.launchers.base.catch_stop_signals` for a process whose parent forwards requests to stop.

    Ctrl-C reaches every process of a terminal, but only the parent responds, by sending SIGTERM. Batch systems send
    SIGTERM to every process, so a second one must not kill. When the parent dies, the kernel sends SIGINT, at torch's
    request, unless a fork server is between them.
    """
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        if number != signal.SIGINT:
            received.append(signal.SIGTERM)

    for number in {signal.SIGINT, *stop_signals()}:
        signal.signal(number, handle)
    yield lambda: received[0] if received else signal.SIGTERM if is_orphaned() else None


@contextmanager
def elastic_logging_disabled() -> Iterator[None]:
    """Silence the elastic agent, whose errors `job_error` reports."""
    loggers = [logging.getLogger("torch.distributed.elastic"), logging.getLogger("torch.multiprocessing")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
