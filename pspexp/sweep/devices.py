"""Exclusive devices or CPU cores for each of the jobs that run concurrently on one machine."""

import getpass
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from pspexp.engine.device import visible_cards
from pspexp.errors import UserError
from pspexp.utils.environment import environment

POLL_S = 0.2

log = logging.getLogger(__name__)


@contextmanager
def device_share(config: DictConfig, jobs_at_once: int | None) -> Iterator[None]:
    """Restrict a job's processes to a share of the machine that no other sweep's job uses; wait for a free one.

    A job that runs alone, or on the card chosen by ``device.index``, is not restricted.

    Args:
        config: The job's configuration.
        jobs_at_once: Number of jobs that the sweep's launcher runs concurrently on this machine; None if unknown.

    Raises:
        UserError: The machine is too small for one share.
    """
    if jobs_at_once == 1 or config.device.get("index") is not None:
        yield
        return
    variable, cards = visible_cards(
        config.device.type, config.device.get("plugin"), config.device.get("visible_devices")
    )
    if cards:
        shares = card_groups(cards, config.launcher.get("nproc_per_node", 1), variable)
        with exclusive_share(variable, shares, config.sweep.jobs_per_device) as mine, environment(variable, mine):
            log.info("%s=%s", variable, mine)
            yield
    else:
        shares = core_groups(config.sweep.cores_per_job, jobs_at_once)
        with exclusive_share("core", shares) as mine, cores(mine):
            log.info("processor cores: %s", mine or "all")
            yield


def is_basic(launcher: DictConfig) -> bool:
    """Whether Hydra's launcher runs the jobs sequentially in the calling process."""
    return bool(launcher._target_.endswith(".BasicLauncher"))


def jobs_at_once(launcher: DictConfig) -> int | None:
    """The number of jobs that Hydra's launcher runs concurrently on this machine; None if unknown."""
    if is_basic(launcher):
        return 1
    if (count := launcher.get("n_jobs")) is None:
        return None
    from joblib import effective_n_jobs  # installed, since its plugin has `n_jobs`

    return int(effective_n_jobs(count))


def card_groups(cards: Sequence[str], size: int, variable: str) -> list[str]:
    """Shares of ``size`` cards each.

    Raises:
        UserError: There are fewer than ``size`` cards.
    """
    if size > len(cards):
        raise UserError(
            f"launcher.nproc_per_node={size}: only {len(cards)} cards are visible ({variable}); use at most that"
        )
    return groups(cards, size)


def groups(names: Sequence[str], size: int) -> list[str]:
    """``["0,1", "2,3"]`` for four names and a size of two; a remainder is not used."""
    return [",".join(names[first : first + size]) for first in range(0, len(names) - size + 1, size)]


def core_groups(size: int | None, jobs_at_once: int | None) -> list[str]:
    """Shares of the cores that this process may use.

    Args:
        size: Cores per share; None to divide them evenly among ``jobs_at_once``.
        jobs_at_once: See `device_share`.

    Raises:
        UserError: There are fewer than ``size`` cores.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return []
    mine = [str(core) for core in sorted(os.sched_getaffinity(0))]
    if size is None:
        size = len(mine) // jobs_at_once if jobs_at_once else 0
    elif size > len(mine):
        raise UserError(f"sweep.cores_per_job={size}: only {len(mine)} cores are available; use at most that")
    return groups(mine, size) if size else []


@contextmanager
def exclusive_share(kind: str, shares: Sequence[str], times: int = 1) -> Iterator[str | None]:
    """Lock the first free share, waiting for one if necessary; None if there are no shares.

    Args:
        kind: Kind of device; shares of one kind exclude each other, even across sweeps.
        shares: Comma-separated device names.
        times: Number of jobs that may use a device at the same time.
    """
    if not shares:
        yield None
        return
    # Local to the machine, since the sweep folder may be shared, and to the SLURM job, which has its own cards.
    allocation = os.environ.get("SLURM_JOB_ID", "")
    folder = Path(tempfile.gettempdir()) / f"pspexp-{getpass.getuser()}" / f"{kind}{allocation}"
    folder.mkdir(parents=True, exist_ok=True)
    waits = False
    while True:
        for share, number in product(shares, range(times)):
            with ExitStack() as held:
                try:
                    for name in share.split(","):
                        lock = FileLock(folder / f"{name}.{number}.lock")
                        lock.acquire(timeout=0)
                        held.callback(lock.release)
                except Timeout:
                    continue
                yield share
                return
        if not waits:
            log.info("waiting: every %s is in use (%s)", kind, " ".join(shares))
            waits = True
        time.sleep(POLL_S)


@contextmanager
def cores(names: str | None) -> Iterator[None]:
    """Restrict processes started in this block to these cores, with one thread each."""
    if names is None:
        yield
        return
    before, mine = os.sched_getaffinity(0), {int(name) for name in names.split(",")}
    os.sched_setaffinity(0, mine)
    try:
        with environment("OMP_NUM_THREADS", str(len(mine))):
            yield
    finally:
        os.sched_setaffinity(0, before)
