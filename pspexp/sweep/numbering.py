"""Hydra's basic sweeper with the numbers that a sweep's folder has given to its jobs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from pspexp.sweep.sweep import BASIC_SWEEPER, Sweep, load_sweep, values_of


class NumberedSweeper(BasicSweeper):
    """Starts the jobs of a command under their numbers in the sweep's folder, where Hydra counts from 0."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """See Hydra's class."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        sweep = load_sweep(Path(config.hydra.sweep.dir))
        if sweep.jobs is not None and self.launcher is not None:
            self.launcher = NumberedLauncher(self.launcher, sweep, sweep.jobs)


class NumberedLauncher(Launcher):
    """Starts jobs through another launcher, those with consecutive numbers together.

    Args:
        launcher: Hydra's launcher.
        sweep: The sweep.
        jobs: The values of each of its jobs, by number.
    """

    def __init__(self, launcher: Launcher, sweep: Sweep, jobs: Sequence[dict[str, Any]]) -> None:
        self.launcher, self.sweep, self.jobs = launcher, sweep, jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the other launcher has been set up."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Start the jobs; ``initial_job_idx``, the number by Hydra's count, is not used."""
        numbered = sorted((self.jobs.index(values_of(self.sweep.varies, job)), job) for job in job_overrides)
        results: list[JobReturn] = []
        for _, group in groupby(enumerate(numbered), key=lambda one: one[1][0] - one[0]):
            together = [job for _, job in group]
            results += self.launcher.launch([job for _, job in together], initial_job_idx=together[0][0])
        return results


@contextmanager
def numbered_jobs() -> Iterator[None]:
    """Let Hydra use `NumberedSweeper` as its basic sweeper, which must be of one of Hydra's own packages."""
    known: dict[str, Any] = Plugins.instance().class_name_to_class
    before, known[BASIC_SWEEPER] = known[BASIC_SWEEPER], NumberedSweeper
    try:
        yield
    finally:
        known[BASIC_SWEEPER] = before
