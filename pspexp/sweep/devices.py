"""Devices of its own, or processor cores, for each of the jobs that run at the same time on one machine."""

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

POLL_S = 0.2

log = logging.getLogger(__name__)


@contextmanager
def own_share(config: DictConfig, jobs_at_once: int | None) -> Iterator[None]:
    """Show the processes that a job starts a share of the machine that no other sweep's job has; wait for one.

    A job that runs alone, or with a card chosen by ``device.index``, is left as it is.

    Args:
        config: of the job.
        jobs_at_once: how many the sweep's launcher runs at the same time on this machine; None: unknown.

    Raises:
        UserError: the machine has less than one share.
    """
    if jobs_at_once == 1 or config.device.get("index") is not None:
        yield
        return
    variable, cards = visible_cards(config.device.type, config.device.get("plugin"), config.device.get("visible_devices"))
    if cards:
        shares = card_groups(cards, config.launcher.get("nproc_per_node", 1), variable)
        with one_of(variable, shares, config.sweep.jobs_per_device) as mine, environment(variable, mine):
            log.info("%s=%s", variable, mine)
            yield
    else:
        shares = core_groups(config.sweep.cores_per_job, jobs_at_once)
        with one_of("core", shares) as mine, cores(mine):
            log.info("processor cores: %s", mine or "all")
            yield


def is_basic(launcher: DictConfig) -> bool:
    """Whether Hydra's launcher runs the jobs in the process it was called in, one after another."""
    return bool(launcher._target_.endswith(".BasicLauncher"))


def jobs_at_once(launcher: DictConfig) -> int | None:
    """How many jobs Hydra's launcher runs at the same time on this machine; None: it does not tell."""
    if is_basic(launcher):
        return 1
    if (count := launcher.get("n_jobs")) is None:
        return None
    from joblib import effective_n_jobs  # it is there, since this is how its plugin counts

    return int(effective_n_jobs(count))


def card_groups(cards: Sequence[str], size: int, variable: str) -> list[str]:
    """Shares of the cards that this process is shown.

    Raises:
        UserError: there are fewer than ``size``.
    """
    if size > len(cards):
        raise UserError(
            f"launcher.nproc_per_node={size}: this machine shows {len(cards)} cards ({variable}); try {len(cards)}"
        )
    return groups(cards, size)


def groups(names: Sequence[str], size: int) -> list[str]:
    """``["0,1", "2,3"]`` for four names and a size of two; what is left over is nobody's."""
    return [",".join(names[first : first + size]) for first in range(0, len(names) - size + 1, size)]


def core_groups(size: int | None, jobs_at_once: int | None) -> list[str]:
    """Shares of the cores that this process may use.

    Args:
        size: cores of each share; None: as many as leave each of ``jobs_at_once`` its own.
        jobs_at_once: see `own_share`.

    Raises:
        UserError: there are fewer cores than ``size``.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return []
    mine = [str(core) for core in sorted(os.sched_getaffinity(0))]
    if size is None:
        size = len(mine) // jobs_at_once if jobs_at_once else 0
    elif size > len(mine):
        raise UserError(f"sweep.cores_per_job={size}: this machine gives {len(mine)} cores; try {len(mine)}")
    return groups(mine, size) if size else []


@contextmanager
def one_of(kind: str, shares: Sequence[str], times: int = 1) -> Iterator[str | None]:
    """The first share of which nobody holds a part, waiting for one; None if there are no shares.

    Args:
        kind: of the devices; shares of one kind exclude each other, of whatever sweep.
        shares: names of devices, with commas between.
        times: how often each device is given away at the same time.
    """
    if not shares:
        yield None
        return
    # A folder of this machine, since the sweep's may be shared; and of this SLURM job, which sees cards of its own.
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
            log.info("waiting: all of %s are taken (%s)", kind, " ".join(shares))
            waits = True
        time.sleep(POLL_S)


@contextmanager
def environment(variable: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for the processes that are started meanwhile."""
    before = os.environ.get(variable)
    if value is not None:
        os.environ[variable] = value
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


@contextmanager
def cores(names: str | None) -> Iterator[None]:
    """Let the processes that are started meanwhile use these cores, and as many threads."""
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
