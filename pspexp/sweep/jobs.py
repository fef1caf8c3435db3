"""One job of a sweep: whether it has to be done, in processes of its own, and what is kept of how it ended."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hydra.conf import HydraConf
from matplotlib import colormaps
from matplotlib.colors import to_hex
from omegaconf import DictConfig, OmegaConf

from pspexp.assembly import build
from pspexp.checkpoint import flatten
from pspexp.composition import finish, with_choices
from pspexp.elastic import Elastic
from pspexp.errors import Interrupted, JobFailed, UserError, essence
from pspexp.launch import Launcher, Single, needs_no_processes
from pspexp.overrides import read
from pspexp.records import own_state, public, record_failure
from pspexp.run import Job
from pspexp.sweep import study
from pspexp.sweep.devices import jobs_at_once, own_share
from pspexp.sweep.study import Sweep, differences
from pspexp.tracking import runs
from pspexp.tracking.local import read_summary, write_atomic
from pspexp.tracking.provenance import command_line

log = logging.getLogger(__name__)

FILE = "job.json"
FAILED_MARK = ".failed"  # in the sweep folder: a job of this invocation has failed
# Of the jobs in MLflow's list and charts, which by itself gives neighbours much the same.
COLOURS = [to_hex(colormaps["tab20"](index)) for index in (*range(0, 20, 2), *range(1, 20, 2))]
METRICS = {"train": "best/mean_iou", "test": "test/mean_iou"}
State = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "NOT STARTED"]


@dataclass(frozen=True)
class Record:
    """What a sweep keeps of a job, in the job's run folder.

    Attributes:
        number: from 0, as Hydra counts.
        name: what varies, for people.
        values: of the keys that vary.
        state: how the job ended, ``RUNNING`` until then.
        metric, result: name and value of what the sweeper compares.
        seconds: in all attempts.
        error: first line of what it failed of.
    """

    number: int
    name: str
    values: dict[str, Any]
    state: State = "RUNNING"
    metric: str | None = None
    result: float | None = None
    seconds: float = 0
    error: str | None = None


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
    sweep, folder = study.load(Path(settings.sweep.dir)), Path(settings.runtime.output_dir)
    words, raw = list(settings.overrides.task), with_choices(config, settings.runtime.choices)
    finished, problem = attempt(lambda: finish(raw.copy(), words), raw)
    with runs.claimed(folder, wait=True):  # a killed sweep's job may still be ending
        before = load(folder)
        if before is not None and problem is None:
            refuse_another(sweep, before, folder, finished)
        if before is not None and before.state == "FINISHED":
            log.info("job %d (%s) was finished before: %s %s", before.number, before.name, before.metric, before.result)
            return before.result
        if before is not None and before.state == "FAILED" and OmegaConf.select(raw, "sweep.retry_failed") is not True:
            raise JobFailed(f"failed before ({before.error}); sweep.retry_failed=true tries again")
        values = values_of(sweep, words)
        metric, seconds = METRICS.get(str(raw.get("mode"))), before.seconds if before else 0
        record = Record(settings.job.num, name_of(values, settings.job.num), values, metric=metric, seconds=seconds)
        again = "status" in read_summary(folder)
        OmegaConf.update(finished, "run_name", " ".join(filter(None, [raw.get("run_name"), record.name])))
        tags = {"sweep": sweep.id, "mlflow.runColor": COLOURS[settings.job.num % len(COLOURS)]}
        command = command_line((), words)  # which does this job alone
        job = Job(finished, folder, words, command, again=again, tags=tags)
        return keep(sweep, record, job, problem, jobs_at_once(settings.launcher))


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


def keep(sweep: Sweep, record: Record, job: Job, problem: Exception | None, at_once: int | None) -> float | None:
    """Do ``job`` and keep how it ends, whatever comes."""
    log.info("job %d (%s)%s", record.number, record.name, ": going on" if job.again else "")
    save(job.folder, record)
    began_s = time.monotonic()
    state: State = "FINISHED"
    result, error = None, None
    try:
        if job.config.get("sweep", {}).get("fail_fast") is True and (sweep.folder / FAILED_MARK).exists():
            raise NotStarted("not started: sweep.fail_fast=true and a job has failed")
        if problem is not None:
            raise problem
        with own_share(sweep, job.config, at_once):
            result, stopped_by = in_processes_of_its_own(job)
    except BaseException as end:
        state, error = state_after(end), essence(end)
        if state == "FAILED":
            (sweep.folder / FAILED_MARK).touch()
            record_failure(job)
        raise
    finally:
        seconds = round(record.seconds + time.monotonic() - began_s, 1)
        save(job.folder, replace(record, state=state, result=result, seconds=seconds, error=error))
    if stopped_by is not None:  # in the last moments of a job that has finished all the same
        raise Interrupted(stopped_by, "the sweep was stopped")
    return result


def in_processes_of_its_own(job: Job) -> tuple[float | None, int | None]:
    """A job's result and the signal that came meanwhile.

    Memory, random states and process groups end with the processes, and what kills one kills no other job.
    """
    if needs_no_processes(job.config, job.folder):
        return None, None
    launcher: Launcher = build(job.config.launcher)
    if isinstance(launcher, Single):
        launcher = Elastic()
    return launcher(job), getattr(launcher, "stopped_by", None)


def state_after(end: BaseException) -> State:
    """How a job ended that did not finish."""
    if isinstance(end, NotStarted):
        return "NOT STARTED"
    return "FAILED" if isinstance(end, Exception) and not isinstance(end, Interrupted) else "KILLED"


def values_of(sweep: Sweep, words: Sequence[str]) -> dict[str, Any]:
    """What a job has of each key that varies."""
    values = {one.key_or_group: one.value() for one in read(words)}
    return {key: plain(values.get(key)) for key in sweep.varies}


def plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return value if isinstance(value, bool | int | float | None) else str(value)


def name_of(values: dict[str, Any], number: int) -> str:
    """``lr=0.0001,batch_size=8``."""
    short = short_names(values)
    return ",".join(f"{short[key]}={shown(value)}" for key, value in values.items()) or f"job {number}"


def shown(value: Any) -> str:
    """A value for people; of what an optimiser chooses four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key; the whole key where two would become one."""
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def save(folder: Path, record: Record) -> None:
    """Write a record into its run folder."""
    write_atomic(folder / FILE, json.dumps(asdict(record), indent=2) + "\n")


def load(folder: Path) -> Record | None:
    """The record in a run folder, if there is one.

    What was killed outright could not tell; its run's own summary may.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    record = Record(**json.loads(file.read_text(encoding="utf-8")))
    if record.state != "RUNNING" or runs.is_claimed(folder):
        return record
    with runs.claimed(folder, runs.WRITING, wait=True):  # processes of a killed job save and end
        summary = read_summary(folder)
    if summary.get("status") != "FINISHED":
        return replace(record, state="KILLED")
    results = {**summary.get("last", {}), **summary.get("best", {})}
    return replace(record, state="FINISHED", result=results.get(record.metric))
