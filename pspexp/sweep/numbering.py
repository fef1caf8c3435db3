"""Jobs under the numbers that a sweep's folder has given to them, where Hydra's basic sweeper counts from 0."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig

from pspexp.sweep.sweep import BASIC_SWEEPER, Sweep, load_sweep, values_of


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
    """Let Hydra's basic sweeper start jobs through `NumberedLauncher`; Hydra accepts no sweeper of another package."""
    sweeper: Any = get_class(BASIC_SWEEPER)
    setup = sweeper.setup

    def numbered_setup(self: Any, *, config: DictConfig, **arguments: Any) -> None:
        setup(self, config=config, **arguments)
        sweep = load_sweep(Path(config.hydra.sweep.dir))
        if sweep.jobs is not None and self.launcher is not None:
            self.launcher = NumberedLauncher(self.launcher, sweep, sweep.jobs)

    sweeper.setup = numbered_setup
    try:
        yield
    finally:
        sweeper.setup = setup
