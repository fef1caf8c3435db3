"""What a sweep keeps of each job, in the job's run folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pspexp.config.overrides import read, short_names
from pspexp.sweep.sweep import JOB_FILE, Sweep, readable
from pspexp.tracking import runs
from pspexp.tracking.run_folder import read_summary
from pspexp.tracking.secrets import mask_secrets
from pspexp.utils.files import write_text_atomic

State = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "NOT STARTED"]


@dataclass(frozen=True)
class Record:
    """What a sweep keeps of a job, in the job's run folder.

    Attributes:
        sweep: id of the sweep.
        number: from 0, as Hydra counts.
        name: what varies, for people.
        values: of the keys that vary.
        state: how the job ended, ``RUNNING`` until then.
        metric, result: name and value of what the sweeper compares.
        seconds: in all attempts.
        error: first line of what it failed of.
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


def values_of(sweep: Sweep, words: Sequence[str]) -> dict[str, Any]:
    """What a job has of each key that varies."""
    values = {one.key_or_group: one.value() for one in read(words)}
    return {key: mask_secrets(plain(values.get(key)), key) for key in sweep.varies}


def plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return value if isinstance(value, bool | int | float | None) else str(value)


def name_of(values: dict[str, Any], number: int) -> str:
    """``lr=0.0001,batch_size=8``."""
    short = short_names(values)
    return ",".join(f"{short[key]}={shown(value)}" for key, value in values.items()) or f"job {number}"


def shown(value: Any) -> str:
    """A value for people; of the many digits that an optimiser chooses four."""
    return f"{value:.4g}" if isinstance(value, float) and len(str(value)) > 8 else str(value)


def save(folder: Path, record: Record) -> None:
    """Write a record into its run folder."""
    write_text_atomic(folder / JOB_FILE, json.dumps(asdict(record), indent=2) + "\n")


def load(folder: Path, *, run_dir_lock: bool = False) -> Record | None:
    """The record in a run folder, if there is one.

    What was killed outright could not tell; its run's own summary may.

    Args:
        folder: of the run.
        run_dir_lock: the caller holds it, so nobody else is at the job.

    Raises:
        UserError: the record, or the summary, cannot be read.
    """
    file = folder / JOB_FILE
    if not file.is_file():
        return None
    with readable(file, f"delete {folder} to do the job anew"):
        record = Record(**json.loads(file.read_text(encoding="utf-8")))
    if record.state != "RUNNING" or (not run_dir_lock and runs.is_locked(folder)):
        return record
    with runs.run_dir_lock(folder, runs.WRITER_LOCK, wait=True):  # processes of a killed job save and end
        summary = summary_of(folder)
    written = (folder / "run.log").stat().st_mtime if (folder / "run.log").exists() else 0
    record = replace(record, seconds=record.seconds + round(max(0, written - file.stat().st_mtime), 1))
    if summary.get("status") != "FINISHED":
        return replace(record, state="KILLED")
    results = {**summary.get("last", {}), **summary.get("best", {})}
    return replace(record, state="FINISHED", result=results.get(record.metric))


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary in a run folder; empty when there is none.

    Raises:
        UserError: it cannot be read.
    """
    with readable(folder / "summary.json", f"delete {folder} to do the job anew"):
        return read_summary(folder)
