"""Runs one job of a sweep in separate processes, unless it is already finished, and records its outcome."""

import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from matplotlib import colormaps
from matplotlib.colors import to_hex
from omegaconf import DictConfig, OmegaConf

from pspexp.config.build import build
from pspexp.config.class_weights import uncounted
from pspexp.config.compose import with_choices
from pspexp.config.overrides import ADDED_GROUPS
from pspexp.config.resolve import resolve
from pspexp.errors import Interrupted, JobFailed, UserError, summarize
from pspexp.jobs.job import Job, needs_no_processes
from pspexp.jobs.records import public, record_failure, training_state_file
from pspexp.launchers import fork_server
from pspexp.launchers.base import Launcher, Single
from pspexp.launchers.elastic import Elastic
from pspexp.sweep.devices import device_share, jobs_at_once
from pspexp.sweep.job_record import JobRecord, State, load, name_of, save, summary_of
from pspexp.sweep.sweep import Sweep, differences, load_sweep, values_of
from pspexp.tracking import runs
from pspexp.tracking.provenance import command_line
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.trees import flatten

log = logging.getLogger(__name__)

PRELOAD = ["pspexp.cli", "pspexp.sweep.preload"]
FAILED_MARK = ".failed"  # in the sweep folder: a job of this invocation failed
# Colours of the jobs in MLflow, whose default colours of neighbouring runs are similar.
COLORS = [to_hex(colormaps["tab20"](index)) for index in (*range(0, 20, 2), *range(1, 20, 2))]
STOPPED_MARK = ".stopped"  # the user stopped the sweep
METRICS = {"train": "best/mean_iou", "test": "test/mean_iou"}


class NotStarted(JobFailed):
    """The job was not started, since the sweep was stopped or another job failed."""


def run_job(config: DictConfig, settings: HydraConf) -> float | None:
    """Run a job, or resume it from an earlier attempt's checkpoint; does nothing if it is already finished.

    Args:
        config: The job's configuration as composed by Hydra.
        settings: Hydra's own configuration of this job.

    Returns:
        The sweep's objective.

    Raises:
        UserError, JobFailed, Interrupted: Raised by the job, or by an earlier attempt.
    """
    sweep = load_sweep(Path(settings.runtime.cwd, settings.sweep.dir))
    overrides, raw = list(settings.overrides.task), with_choices(config, settings.runtime.choices)
    resolved, problem = try_resolve(raw, overrides)
    folder = Path(settings.runtime.output_dir)
    try:
        with runs.run_dir_lock(folder, wait=True):  # the job of a killed sweep may still be saving
            before = previous_attempt(sweep, folder, settings.job.num, resolved, problem)
            if before is not None and before.state == "FINISHED":
                log.info("job %d (%s) is already finished: %s", before.number, before.name, before.result)
                return before.result
            record = new_record(sweep, settings.job.num, overrides, before)
            job = make_job(sweep, record, resolved, folder, overrides)
            run_name = OmegaConf.select(resolved, "run_name", throw_on_resolution_failure=False)
            if isinstance(run_name, str | None):  # any other type is one of the problems
                job.config.run_name = " ".join(filter(None, [run_name, record.name]))
            return run_and_record(sweep, record, job, problem, settings.launcher)
    except Exception as error:
        if not isinstance(error, Interrupted):
            (sweep.folder / FAILED_MARK).touch()
        raise


def previous_attempt(
    sweep: Sweep, folder: Path, number: int, config: DictConfig, problem: Exception | None
) -> JobRecord | None:
    """The record of the previous attempt, if there is one.

    Raises:
        UserError: The folder contains another job, or a job of another sweep.
        JobFailed: The attempt failed and ``sweep.retry_failed`` is not set.
    """
    before = load(folder, holds_lock=True)
    if before is None or config.get("mode") not in METRICS:  # other modes are always repeated
        return None
    if before.sweep != sweep.id:
        raise UserError(f"{folder}: contains a job of the sweep {before.sweep}; choose another hydra.sweep.dir")
    if before.number != number:
        raise UserError(
            f"hydra.sweep.subdir: jobs {before.number} and {number} share {folder}; add "
            "${hydra.job.num} or a varied key"
        )
    if problem is None:
        refuse_another(sweep, before, folder, config)
    if before.state == "FAILED" and OmegaConf.select(config, "sweep.retry_failed") is not True:
        raise JobFailed(f"failed before ({before.error}); set sweep.retry_failed=true to retry")
    return before


def new_record(sweep: Sweep, number: int, overrides: Sequence[str], before: JobRecord | None) -> JobRecord:
    """The record of a new attempt."""
    values = values_of(sweep.varies, overrides)
    return JobRecord(sweep.id, number, name_of(values, number), values, seconds=before.seconds if before else 0)


def make_job(sweep: Sweep, record: JobRecord, config: DictConfig, folder: Path, overrides: list[str]) -> Job:
    """The job for the launcher, with the command line that reproduces it alone."""
    tags = {"sweep": sweep.id, "mlflow.runColor": COLORS[record.number % len(COLORS)]}
    alone = [text for text in overrides if text.lstrip("+").partition("=")[0] not in ADDED_GROUPS]
    is_restart = "status" in summary_of(folder)
    return Job(config, folder, overrides, command_line((), alone), is_restart=is_restart, tags=tags)


def try_resolve(config: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Exception | None]:
    """The resolved and checked configuration; if that fails, the one as composed, and the error."""
    try:
        return resolve(config.copy(), overrides), None
    except Exception as error:
        return config, error


def refuse_another(sweep: Sweep, before: JobRecord, folder: Path, config: DictConfig) -> None:
    """Raise UserError if the job in ``folder`` was configured differently."""
    if before.state != "FINISHED" and not training_state_file(folder).is_file():
        return  # nothing is lost
    then: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    now = flatten(public(config))
    if found := differences(uncounted(flatten(then), now), uncounted(now, now)):
        where = f"job {before.number} of the sweep in {sweep.folder}"
        raise UserError(*(f"{line} ({where}); choose another folder" for line in found))


def run_and_record(
    sweep: Sweep, record: JobRecord, job: Job, problem: Exception | None, launcher: DictConfig
) -> float | None:
    """Run a job and record how it ends, whatever happens."""
    log.info("job %d (%s)%s", record.number, record.name, ": resuming" if job.is_restart else "")
    record = replace(record, metric=METRICS.get(str(job.config.get("mode"))))
    save(job.folder, record)
    began_s = time.monotonic()
    state: State = "FINISHED"
    result, error = None, None
    try:
        raise_if_stopped(sweep, job.config)
        if problem is not None:
            raise problem
        with device_share(job.config, jobs_at_once(launcher)):
            began_s = time.monotonic()  # excludes the waiting time
            raise_if_stopped(sweep, job.config)
            result, stopped_by = run_in_processes(
                job, sweep.folder / STOPPED_MARK, share_imports=jobs_at_once(launcher) is not None
            )
    except BaseException as end:
        state, error = final_state(end), mask_logins(summarize(end))
        if state == "FAILED":
            record_failure(job)
        raise
    finally:
        seconds = round(record.seconds + time.monotonic() - began_s, 1)
        save(job.folder, replace(record, state=state, result=result, seconds=seconds, error=error))
    if stopped_by is not None:  # too late: the job had just finished
        raise Interrupted(stopped_by, "the sweep was stopped")
    return result


def raise_if_stopped(sweep: Sweep, config: DictConfig) -> None:
    """Raise NotStarted if the sweep was stopped, or is to stop after a failure."""
    if (sweep.folder / STOPPED_MARK).exists():
        raise NotStarted("not started: the sweep was stopped")
    if OmegaConf.select(config, "sweep.fail_fast") is True and (sweep.folder / FAILED_MARK).exists():
        raise NotStarted("not started: sweep.fail_fast=true and a job failed")


def run_in_processes(job: Job, stopped: Path, share_imports: bool) -> tuple[float | None, int | None]:
    """Run a job in separate processes; returns its result and the signal that stopped it, if any.

    Jobs thus share no memory, random state or process group, and a crash affects only one of them.

    Args:
        job: The job.
        stopped: File that exists once the sweep was stopped, by a signal that this process may not have received.
        share_imports: Whether to fork the processes of one that has imported everything; not if a plugin of torch
            provides the device, since it may have started threads there.
    """
    if needs_no_processes(job.config, job.folder):
        return None, None
    launcher: Launcher | Elastic = build(job.config.launcher)
    if isinstance(launcher, Single):
        launcher = Elastic()
    if not isinstance(launcher, Elastic):  # varied; a fixed one was refused before the sweep began
        raise UserError(f"launcher={job.config.choices.launcher}: cannot be used in a sweep; use single or ddp")
    if share_imports and job.config.device.get("plugin") is None and fork_server.is_supported():
        launcher.start_method = "forkserver"
        fork_server.start(PRELOAD)
    launcher.poll_stop = lambda: signal.SIGTERM if stopped.exists() else None
    return launcher(job), launcher.stopped_by


def final_state(end: BaseException) -> State:
    """The state of a job that ended with an exception."""
    if isinstance(end, NotStarted):
        return "NOT STARTED"
    return "FAILED" if isinstance(end, Exception) and not isinstance(end, Interrupted) else "KILLED"
