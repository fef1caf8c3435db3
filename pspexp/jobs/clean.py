"""``mode=clean``: list old runs, and remove them with their runs in MLflow after asking."""

import logging
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from pspexp.errors import UserError, setting
from pspexp.tracking import runs
from pspexp.tracking.manifest import read_delivered, read_manifest, run_ids
from pspexp.tracking.mlflow_client import delete_run, resolve_uri
from pspexp.tracking.run_folder import read_summary
from pspexp.tracking.secrets import is_masked, mask_logins
from pspexp.utils.files import mib
from pspexp.utils.tables import PIPED_WIDTH
from pspexp.utils.text import count

DAY_S = 24 * 3600

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OldRun:
    """A run that may be removed.

    Attributes:
        folder: Its folder.
        status: How it ended; a run that is RUNNING, but not in use, was killed.
        age_days: Days since the last change to its records.
        size: Bytes that removing it frees.
        mlflow_id: Its id in MLflow, if it has one.
    """

    folder: Path
    status: str
    age_days: float
    size: int
    mlflow_id: str | None


def clean(config: DictConfig, folder: Path) -> None:
    """Remove the runs in ``config.clean.runs`` that match its rule.

    Args:
        config: The command's configuration.
        folder: Not used.

    Raises:
        UserError: A path does not exist.
    """
    found = sorted(old_runs(config), key=lambda run: -run.age_days)
    if not found:
        log.info("no run matches %s", rule(config))
        return
    show(found, rule(config))
    if config.clean.ask and not confirmed(f"Remove {count(len(found), 'run')} for good?"):
        log.info("nothing was removed; to remove without a question, add %s", setting("clean.ask", False))
        return
    removed = [run for run in found if remove(run, config)]
    log.info("%s removed", count(len(removed), "run"))


def rule(config: DictConfig) -> str:
    """Which runs are meant, in words."""
    statuses = ", ".join(config.clean.status)
    return f"{setting('clean.status')}=[{statuses}], {setting('clean.older_than_days', config.clean.older_than_days)}"


def old_runs(config: DictConfig) -> Iterator[OldRun]:
    """The runs that match the rule, are not in use and contain no other run."""
    folders = run_folders(config)
    for folder in folders:
        status = str(read_summary(folder).get("status"))
        status = "KILLED" if status == "RUNNING" else status
        if runs.is_locked(folder) or any(other != folder and other.is_relative_to(folder) for other in folders):
            continue
        files = [file.stat() for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".lock")]
        age_days = (time.time() - max(file.st_mtime for file in files)) / DAY_S
        if status not in config.clean.status or age_days < config.clean.older_than_days:
            continue
        # A hard link's space is freed with its last name, such as that in MLflow's artifacts, which goes, too.
        yield OldRun(folder, status, age_days, sum(file.st_size for file in files), run_ids(folder).get("mlflow"))


def run_folders(config: DictConfig) -> list[Path]:
    """The run folders in ``clean.runs``, jobs of sweeps included."""
    given: Any = config.clean.runs
    paths = [Path(str(path)).expanduser() for path in (given if OmegaConf.is_list(given) else [given])] or [
        Path(config.output_root)
    ]
    if missing := [path for path in paths if not path.is_dir()]:
        raise UserError(
            *(
                f"{setting('clean.runs', path)}: no such folder (looked for {path.absolute()}); give run folders, or "
                "folders that contain some"
                for path in missing
            )
        )
    found = {file.parent for path in paths for file in path.rglob("summary.json")}
    return sorted(folder for folder in found if (folder / "config.yaml").is_file())


def show(found: list[OldRun], title: str) -> None:
    """Print a table of runs."""
    table = Table(title=title, title_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for name in ("days", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in found:
        table.add_row(str(run.folder), run.status, f"{run.age_days:.0f}", mib(run.size))
    table.add_section()
    table.add_row(count(len(found), "run"), "", "", mib(sum(run.size for run in found)))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table)


def confirmed(question: str) -> bool:
    """Whether the user agrees; no without a terminal to ask on."""
    return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def remove(run: OldRun, config: DictConfig) -> bool:
    """Remove a run: first from MLflow, since only the folder knows its id there; returns whether that was possible."""
    try:
        with runs.run_dir_lock(run.folder), runs.run_dir_lock(run.folder, runs.WRITER_LOCK):
            if run.mlflow_id is not None:
                delete_run(run.mlflow_id, mlflow_uri(run.folder, config))
            shutil.rmtree(run.folder)
    except (UserError, OSError) as error:
        log.warning("%s is kept: %s", run.folder, error)
        return False
    return True


def mlflow_uri(folder: Path, config: DictConfig) -> str:
    """Where a run is recorded: as the command line says, else as the run's configuration does, else by default.

    Raises:
        UserError: The run was recorded elsewhere.
    """
    manifest = read_manifest(folder)
    recorded = manifest.tracking.get("tracking_uri") if manifest else None
    given = config.tracking.get("tracking_uri") or (None if is_masked(recorded) else recorded)
    uri = resolve_uri(given, config.output_root)
    place = read_delivered(folder, "mlflow").place
    if place and place != mask_logins(f"MLflow at {uri}"):
        raise UserError(
            f"it was recorded by {place}, but {setting('tracking.tracking_uri')} is {mask_logins(uri)} here"
        )
    return uri
