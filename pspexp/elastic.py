"""Several processes started here, through torch's elastic agent: the engine of ``torchrun``."""

import atexit
import json
import logging
import logging.config
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing import api as agents_processes
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pspexp.distributed import kept_store, placed_by_torch
from pspexp.errors import Interrupted, JobFailed, UserError
from pspexp.launch import address_problems
from pspexp.records import close_abandoned
from pspexp.run import Job

STOP_SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
POLL_S = 0.05
GRACE_S = 10  # for the other processes to end by themselves when one has failed
KNOWN_PORT_NEEDED = "launcher.master_port=null: several nodes need one that all know; choose a free one, e.g. 29505"

log = logging.getLogger(__name__)


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

    placed, again = False, False

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
        self.leads, self.world_size = node_rank == 0, nnodes * nproc_per_node
        self.stopped_by: int | None = None  # the signal that came during the job, which may have finished all the same
        self.stop_asked: Callable[[], int | None] = lambda: None  # another way to ask for a stop than by a signal

    def __call__(self, job: Job) -> float | None:
        """The result of ``job``, done by all processes.

        Raises:
            UserError, Interrupted: as ``job`` does.
            JobFailed: names the process that failed first.
        """
        port, several = self.master_port or 0, self.nnodes > 1
        forget_unknown_start_method()
        # Kept for the whole job: no other can be given the port.
        store = kept_store(self.master_addr, port, several_machines=several) if self.leads else None
        with (
            TemporaryDirectory() as folder,
            Keeper(self.nproc_per_node, self.max_restarts, self.stop_asked) as keeper,
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
                if self.leads:
                    close_abandoned(job, "KILLED" if keeper.stopped_by else "FAILED")
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
            local_addr=self.master_addr if self.leads else None,
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
    job: Job, notes: Path, log_config: dict[str, Any], nproc_per_node: int, max_restarts: int, parent: int
) -> float | str | None:
    """Do ``job`` as one of the processes; what the agent runs. A string tells that, and where, it was stopped."""
    place, done = placed_by_torch(), list[bool]()
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
    """As `pspexp.launch.stop_requests`, for a process that has a parent to ask for it.

    Ctrl-C reaches all processes of a terminal and is the parent's to answer, which then sends SIGTERM. Other
    systems send SIGTERM to everybody: the second one must not kill. When the parent dies, torch has the kernel
    send SIGINT.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        if number != signal.SIGINT or os.getppid() != parent:
            came.append(signal.SIGTERM)

    for number in {signal.SIGINT, *heeded()}:
        signal.signal(number, note)
    yield lambda: came[0] if came else None


def heeded() -> tuple[signal.Signals, ...]:
    """The signals that ask to stop; not those that this process was told to ignore, as ``nohup`` does."""
    return tuple(number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)


class Keeper:
    """Keeps watch over the processes that the agent starts, in a thread: the agent has the main one.

    The agent would answer a signal by ending the processes, after 30 seconds by force, which may be less than a
    step. Here the first one is passed on as a request to stop and waited for; a second one kills. When a process
    has failed the others get `GRACE_S` to end.

    Attributes:
        stopped_by: the signal that came, if one did.
        first_dead: pid of the process that failed first in the last attempt.
    """

    def __init__(self, nproc: int, max_restarts: int, stop_asked: Callable[[], int | None]) -> None:
        self._nproc, self._restarts_left, self._stop_asked = nproc, max_restarts, stop_asked
        self.stopped_by: int | None = None
        self.first_dead: int | None = None
        self._heeded = heeded()
        self._others = set(multiprocessing.active_children())
        self._known: frozenset[BaseProcess] = frozenset()
        self._told: set[BaseProcess] = set()
        self._doomed: dict[BaseProcess, float] = {}
        self._end = threading.Event()
        self._exit = ExitStack()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Keeper":
        # What the agent sets as the handler each time it starts processes.
        self._exit.enter_context(mock.patch.object(agents_processes, "_terminate_process_handler", self._note))
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for number in STOP_SIGNALS:
                self._exit.callback(signal.signal, number, signal.getsignal(number))
            for number in self._heeded:
                # Until the agent has met the other machines: it waits in torch, where handlers of Python do not run.
                signal.signal(number, signal.SIG_DFL)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._exit.close()

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.stopped_by is not None:
            raise Interrupted(self.stopped_by, "stopped before the processes could save; the last save stays")

    def _watch(self) -> None:
        while not self._end.wait(POLL_S):
            codes = {child: exit_code(child) for child in self._known}
            # Asked only while the agent is starting them: to ask reaps, and then the agent finds no exit code.
            if len(codes) % self._nproc or all(code is not None for code in codes.values()):
                self._known = frozenset(self._known.union(multiprocessing.active_children()) - self._others)
            self._see_failures(codes)
            if self.stopped_by is None:
                self.stopped_by = self._stop_asked()
            self._pass_on(codes)

    def _see_failures(self, codes: dict[BaseProcess, int | None]) -> None:
        dead = {child: code for child, code in codes.items() if code}
        alive = {child for child, code in codes.items() if code is None}
        if new := dead.keys() - self._doomed.keys():  # the first of this attempt; of several, one that was killed
            first = min(new, key=lambda child: (dead[child] == -signal.SIGTERM, dead[child]))
            self.first_dead = first.pid
            if self._restarts_left and self.stopped_by is None:
                log.error("process %s ended with %s; all start again", first.pid, dead[first])
            self._restarts_left = max(self._restarts_left - 1, 0)
            self._doomed |= dict.fromkeys(alive | dead.keys(), time.monotonic() + GRACE_S)
        for child in alive & self._doomed.keys():
            if time.monotonic() > self._doomed[child]:
                child.kill()

    def _note(self, number: int, _: object) -> None:
        if number not in self._heeded:
            return
        if self.stopped_by is not None:
            for child in self._known:
                child.kill()
        self.stopped_by = int(number)

    def _pass_on(self, codes: dict[BaseProcess, int | None]) -> None:
        if self.stopped_by is not None:
            for child in {one for one, code in codes.items() if code is None} - self._told:
                child.terminate()
                self._told.add(child)


def exit_code(child: BaseProcess) -> int | None:
    """The exit code of a process, negative after a signal; None while it lives. It is left to others to reap."""
    known: int | None = child._popen.returncode  # type: ignore[attr-defined]
    if known is not None:
        return known
    try:
        end = os.waitid(os.P_PID, child.pid or 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # reaped just now; its code will be known in a moment
        return None
    if end is None:
        return None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


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
