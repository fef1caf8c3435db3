"""The record that a sweep keeps of each job, ``job.json`` in the run folder."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pspexp.config.overrides import short_names
from pspexp.sweep.sweep import JOB_FILE, user_error_for
from pspexp.tracking import runs
from pspexp.tracking.run_folder import read_summary
from pspexp.utils.files import write_text_atomic

State = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "NOT STARTED"]


@dataclass(frozen=True)
class JobRecord:
    """The record of a job.

    Attributes:
        sweep: Id of the sweep.
        number: Hydra's number of the job, from 0.
        name: Readable name made of the varied settings.
        values: Values of the varied keys.
        state: How the job ended; ``RUNNING`` until then.
        metric, result: Name and value of the sweep's objective.
        seconds: Run time, summed over all attempts.
        error: First line of the error message.
    """

    sweep: str
    number: int
    name: str
    values: dict[str, Any]
    state: State = "RUNNING"
    metric: str | None = None
    result: float | None = None
    seconds: float = 0
    error: str | None = None


def name_of(values: dict[str, Any], number: int) -> str:
    """``lr=0.0001,batch_size=8``."""
    short = short_names(values)
    return ",".join(f"{short[key]}={shown(value)}" for key, value in values.items()) or f"job {number}"


def shown(value: Any) -> str:
    """A value for display: long floats, such as a sweeper samples, with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def save(folder: Path, record: JobRecord) -> None:
    """Write a record into its run folder."""
    write_text_atomic(folder / JOB_FILE, json.dumps(asdict(record), indent=2) + "\n")


def load(folder: Path, *, holds_lock: bool = False) -> JobRecord | None:
    """The record in a run folder, if there is one.

    A killed job could not update its record; its state is then read from the run's summary.

    Args:
        folder: The run folder.
        holds_lock: Whether the caller holds the folder's lock, so that the job cannot be running.

    Raises:
        UserError: The record or the summary cannot be read.
    """
    file = folder / JOB_FILE
    if not file.is_file():
        return None
    with user_error_for(file, f"delete {folder} to repeat the job"):
        record = JobRecord(**json.loads(file.read_text(encoding="utf-8")))
    if record.state != "RUNNING" or (not holds_lock and runs.is_locked(folder)):
        return record
    with runs.run_dir_lock(folder, runs.WRITER_LOCK, wait=True):  # the processes of a killed job may still be saving
        summary = summary_of(folder)
    written = (folder / "run.log").stat().st_mtime if (folder / "run.log").exists() else 0
    record = replace(record, seconds=record.seconds + round(max(0, written - file.stat().st_mtime), 1))
    if summary.get("status") != "FINISHED":
        return replace(record, state="KILLED")
    results = {**summary.get("last", {}), **summary.get("best", {})}
    return replace(record, state="FINISHED", result=results.get(record.metric))


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary in a run folder; empty if there is none.

    Raises:
        UserError: It cannot be read.
    """
    with user_error_for(folder / "summary.json", f"delete {folder} to repeat the job"):
        return read_summary(folder)
