"""Python's fork server as the origin of a job's processes: they have imported everything that it has.

It stays single-threaded and never touches a card, so that its forks can use both.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver

import torch

from pspexp.launchers.base import STOP_SIGNALS
from pspexp.utils.environment import environment

_environment: dict[str, str] | None = None  # of the fork server, in it and in its forks
_handlers: dict[signal.Signals, object] = {}


def is_supported() -> bool:
    """Whether forks of a process that has imported torch work: on macOS, they may crash; Windows has none."""
    return sys.platform == "linux"


def start(preload: Sequence[str]) -> None:
    """Start the fork server of this process, if it is not running yet.

    Args:
        preload: Modules that it imports; one of them calls `prepare`.
    """
    multiprocessing.set_forkserver_preload(list(preload))
    with environment("PYTHONPATH", os.pathsep.join(filter(None, sys.path))):  # Python's fork server ignores this path
        forkserver.ensure_running()


def prepare() -> None:
    """Prepare this process, the fork server.

    Batch systems send a request to stop to every process, but the jobs need this one until they have saved. By itself,
    it ignores Ctrl-C only.
    """
    global _environment
    _environment = dict(os.environ)
    for number in STOP_SIGNALS:
        if number != signal.SIGINT:
            _handlers[number] = signal.signal(number, signal.SIG_IGN)
    os.register_at_fork(after_in_child=_handle_signals)


def _handle_signals() -> None:
    """Handle signals as before `prepare`: in a fork, but not in the processes that it forks."""
    while _handlers:
        signal.signal(*_handlers.popitem())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Inheritance:
    """What a process inherits from the one that starts it, except from behind a fork server.

    Attributes:
        environment: The environment variables.
        cores: The cores that it may use; None where the system does not tell.
    """

    environment: dict[str, str]
    cores: set[int] | None

    @classmethod
    def of_this_process(cls) -> "Inheritance":
        """What a new process would inherit from this one."""
        return cls(dict(os.environ), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None)

    def apply(self) -> None:
        """Let a fork of the fork server inherit it; torch has read the number of threads there. Else without effect."""
        if _environment is None:
            return
        own = {name for name, value in os.environ.items() if _environment.get(name) != value}
        for name in os.environ.keys() - self.environment.keys() - own:
            del os.environ[name]
        os.environ.update({name: value for name, value in self.environment.items() if name not in own})
        num_threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        if self.cores is not None and self.cores != os.sched_getaffinity(0):
            os.sched_setaffinity(0, self.cores)
            torch.set_num_threads(len(self.cores))
        if num_threads.isdecimal() and int(num_threads):
            torch.set_num_threads(int(num_threads))
