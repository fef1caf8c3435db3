"""Worker processes of data loaders: how they start, what they do with signals, how they end."""

import atexit
import multiprocessing
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader

from pspexp.errors import JobFailed, UserError, setting
from pspexp.utils.files import free_space, mib

_open_iterators: WeakSet[Any] = WeakSet()
SHM = Path("/dev/shm")
LOCKS = 2**15  # bytes of shared memory for the locks of a worker; the batches take more
_PARENT_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # handled by the parent alone


def iterate(loader: "DataLoader[Any]") -> Iterator[Any]:
    """The items of a loader. A `UserError` among them is raised.

    A UserError raised in a worker would arrive with a traceback as its message, so data sets return it as a value.
    """
    if loader.num_workers and shared_memory_is_full():
        raise JobFailed(no_shared_memory())
    with _signals_blocked():  # until the workers ignore them
        items = iter(loader)
    _open_iterators.add(items)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if (text := _failure(error)) is None:
            raise
        raise JobFailed(text) from error
    finally:
        _end_workers(items)


def _failure(error: RuntimeError) -> str | None:
    """One line about workers that had no shared memory, or were killed; None for any other error."""
    key = setting("loader.num_workers")
    if "shared memory" in str(error) or "Bus error" in str(error):  # the latter: writing to it fails
        return no_shared_memory()
    if killed := re.search(r"DataLoader worker \(pid.*?\) .*", str(error)):
        return f"{killed[0].rstrip('. ')}; if memory ran out, lower {key} or {setting('loader.cache_mib')}"
    return None


def shared_memory_is_full() -> bool:
    """Whether there is not even enough for the locks of one worker."""
    free = free_space(SHM) if SHM.is_dir() else None
    return free is not None and free < LOCKS


def no_shared_memory() -> str:
    """One line about it."""
    return (
        f"{SHM}: too small for the workers of the loader ({mib(free_space(SHM) or 0)} are free); set "
        f"{setting('loader.num_workers', 0)}, or start the container with --shm-size=1g"
    )


def _end_workers(items: Any) -> None:
    """Shut the workers down now, instead of when their iterator is garbage-collected: a traceback may hold it.

    At exit, Python would send the remaining workers a SIGTERM, which they ignore, and wait for them forever.
    """
    if hasattr(items, "_shutdown_workers"):  # without workers there is none
        items._shutdown_workers()


@atexit.register
def _end_all_workers() -> None:
    for items in list(_open_iterators):
        _end_workers(items)


def worker_context() -> BaseContext:
    """How workers are started, whatever the process-wide start method: with joblib's own, a DataLoader fails.

    On Linux they are forked, since a spawned worker takes seconds to import torch. Forking after torch has started its
    threads is safe here because a worker uses one thread and no accelerator. Elsewhere it is unsafe or unavailable.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def worker_options(num_workers: int, pin_memory: bool) -> dict[str, Any]:
    """Options of both kinds of DataLoader."""
    return {
        "num_workers": num_workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _start_worker,
        "multiprocessing_context": worker_context() if num_workers else None,
        "generator": torch.Generator().manual_seed(0),  # otherwise each iterator draws from the global generator
    }


def _start_worker(worker_id: int) -> None:
    """Use one thread, and leave Ctrl-C and SIGTERM to the parent.

    These signals reach the whole process group, but the parent needs its workers until it has finished. Workers exit
    when the parent tells them to, or when it is gone.
    """
    torch.set_num_threads(1)
    for number in _PARENT_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENT_SIGNALS)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the parent's signals in this block; processes started in it inherit the mask."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENT_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
