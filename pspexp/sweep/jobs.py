"""One job of a sweep: whether it has to be done, in processes of its own, and how it ends."""

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from matplotlib import colormaps
from matplotlib.colors import to_hex
from omegaconf import DictConfig, OmegaConf

from pspexp.config.build import build
from pspexp.config.compose import finish, with_choices
from pspexp.config.overrides import ADDED_GROUPS
from pspexp.errors import Interrupted, JobFailed, UserError, summarize
from pspexp.jobs.job import Job, needs_no_processes
from pspexp.jobs.records import own_state, public, record_failure
from pspexp.launchers.base import Launcher, Single
from pspexp.launchers.elastic import Elastic
from pspexp.sweep import sweep as study
from pspexp.sweep.devices import jobs_at_once, own_share
from pspexp.sweep.record import Record, State, load, name_of, save, summary_of, values_of
from pspexp.sweep.sweep import Sweep, differences
from pspexp.tracking import runs
from pspexp.tracking.provenance import command_line
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.trees import flatten

log = logging.getLogger(__name__)

FAILED_MARK = ".failed"  # in the sweep folder: a job of this invocation has failed
# Of the jobs in MLflow's list and charts, which by itself gives neighbours much the same.
COLOURS = [to_hex(colormaps["tab20"](index)) for index in (*range(0, 20, 2), *range(1, 20, 2))]
STOPPED_MARK = ".stopped"  # somebody has stopped the sweep
METRICS = {"train": "best/mean_iou", "test": "test/mean_iou"}


class NotStarted(JobFailed):
    """The sweep was to stop at the first failure, and there was one."""


def do(config: DictConfig, settings: HydraConf) -> float | None:
    """Do a job unless it was finished before; go on with what an earlier attempt has saved.

    Args:
        config: the job's configuration as Hydra composed it.
        settings: Hydra's own for this job.

    Returns:
        What the sweeper compares.

    Raises:
        UserError, JobFailed, Interrupted: as the job does, or as it did before.
    """
    sweep = study.load(Path(settings.runtime.cwd, settings.sweep.dir))
    words, raw = list(settings.overrides.task), with_choices(config, settings.runtime.choices)
    finished, problem = attempt(lambda: finish(raw.copy(), words), raw)
    folder = Path(settings.runtime.output_dir)
    try:
        with runs.run_dir_lock(folder, wait=True):  # a killed sweep's job may still be ending
            before = earlier(sweep, folder, settings.job.num, finished, problem)
            if before is not None and before.state == "FINISHED":
                log.info("job %d (%s) was finished before: %s", before.number, before.name, before.result)
                return before.result
            record = begin(sweep, settings.job.num, words, before)
            job = request(sweep, record, finished, folder, words)
            given = OmegaConf.select(finished, "run_name", throw_on_resolution_failure=False)
            if isinstance(given, str | None):  # else that is one of the problems
                job.config.run_name = " ".join(filter(None, [given, record.name]))
            return keep(sweep, record, job, problem, settings.launcher)
    except Exception as error:
        if not isinstance(error, Interrupted):
            (sweep.folder / FAILED_MARK).touch()
        raise


def earlier(sweep: Sweep, folder: Path, number: int, config: DictConfig, problem: Exception | None) -> Record | None:
    """The record of an earlier attempt that counts.

    Raises:
        UserError: the folder holds another job, or one of another sweep.
        JobFailed: it failed, and is not to be tried again.
    """
    before = load(folder, run_dir_lock=True)
    if before is None or config.get("mode") not in METRICS:  # the others are done whenever they are asked for
        return None
    if before.sweep != sweep.id:
        raise UserError(f"{folder}: holds a job of the sweep {before.sweep}; choose another hydra.sweep.dir")
    if before.number != number:
        raise UserError(
            f"hydra.sweep.subdir: jobs {before.number} and {number} share {folder}; put what varies, or "
            "${hydra.job.num}, into it"
        )
    if problem is None:
        refuse_another(sweep, before, folder, config)
    if before.state == "FAILED" and OmegaConf.select(config, "sweep.retry_failed") is not True:
        raise JobFailed(f"failed before ({before.error}); sweep.retry_failed=true tries again")
    return before


def begin(sweep: Sweep, number: int, words: Sequence[str], before: Record | None) -> Record:
    """The record of an attempt."""
    values = values_of(sweep, words)
    return Record(sweep.id, number, name_of(values, number), values, seconds=before.seconds if before else 0)


def request(sweep: Sweep, record: Record, config: DictConfig, folder: Path, words: list[str]) -> Job:
    """What the job's processes are to do."""
    tags = {"sweep": sweep.id, "mlflow.runColor": COLOURS[record.number % len(COLOURS)]}
    alone = [word for word in words if word.lstrip("+").partition("=")[0] not in ADDED_GROUPS]
    again = "status" in summary_of(folder)
    return Job(config, folder, words, command_line((), alone), is_restart=again, tags=tags)


def attempt(finish: Callable[[], DictConfig], raw: DictConfig) -> tuple[DictConfig, Exception | None]:
    """The finished configuration, or the one as composed and why it cannot be finished."""
    try:
        return finish(), None
    except Exception as error:
        return raw, error


def refuse_another(sweep: Sweep, before: Record, folder: Path, config: DictConfig) -> None:
    """Raise UserError if what ``folder`` holds was configured otherwise."""
    if before.state != "FINISHED" and not own_state(folder).is_file():
        return  # nothing is lost
    then: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    if found := differences(flatten(then), flatten(public(config))):
        where = f"job {before.number} of the sweep in {sweep.folder}"
        raise UserError(*(f"{one} ({where}); choose another folder" for one in found))


def keep(sweep: Sweep, record: Record, job: Job, problem: Exception | None, launcher: DictConfig) -> float | None:
    """Do ``job`` and keep how it ends, whatever comes."""
    log.info("job %d (%s)%s", record.number, record.name, ": going on" if job.is_restart else "")
    record = replace(record, metric=METRICS.get(str(job.config.get("mode"))))
    save(job.folder, record)
    began_s = time.monotonic()
    state: State = "FINISHED"
    result, error = None, None
    try:
        raise_if_stopped(sweep, job.config)
        if problem is not None:
            raise problem
        with own_share(job.config, jobs_at_once(launcher)):
            began_s = time.monotonic()  # to wait is no work
            raise_if_stopped(sweep, job.config)
            result, stopped_by = in_processes_of_its_own(job, sweep.folder / STOPPED_MARK)
    except BaseException as end:
        state, error = state_after(end), mask_logins(summarize(end))
        if state == "FAILED":
            record_failure(job)
        raise
    finally:
        seconds = round(record.seconds + time.monotonic() - began_s, 1)
        save(job.folder, replace(record, state=state, result=result, seconds=seconds, error=error))
    if stopped_by is not None:  # in the last moments of a job that has finished all the same
        raise Interrupted(stopped_by, "the sweep was stopped")
    return result


def raise_if_stopped(sweep: Sweep, config: DictConfig) -> None:
    """Raise NotStarted if no further job is to begin."""
    if (sweep.folder / STOPPED_MARK).exists():
        raise NotStarted("not started: the sweep was stopped")
    if OmegaConf.select(config, "sweep.fail_fast") is True and (sweep.folder / FAILED_MARK).exists():
        raise NotStarted("not started: sweep.fail_fast=true and a job has failed")


def in_processes_of_its_own(job: Job, stopped: Path) -> tuple[float | None, int | None]:
    """A job's result and the signal that came meanwhile.

    Memory, random states and process groups end with the processes, and what kills one kills no other job.

    Args:
        job: to be done.
        stopped: a file that is there when the sweep was stopped, by a signal that this process may not have had.
    """
    if needs_no_processes(job.config, job.folder):
        return None, None
    launcher: Launcher | Elastic = build(job.config.launcher)
    if isinstance(launcher, Single):
        launcher = Elastic()
    if not isinstance(launcher, Elastic):  # refused by `main`, but for values that vary
        raise UserError(f"launcher={job.config.choices.launcher}: not in a sweep; use single or ddp")
    launcher.poll_stop = lambda: signal.SIGTERM if stopped.exists() else None
    return launcher(job), launcher.stopped_by


def state_after(end: BaseException) -> State:
    """How a job ended that did not finish."""
    if isinstance(end, NotStarted):
        return "NOT STARTED"
    return "FAILED" if isinstance(end, Exception) and not isinstance(end, Interrupted) else "KILLED"
