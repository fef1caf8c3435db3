"""Finds earlier runs and their files, and locks run folders."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pspexp.errors import UserError
from pspexp.tracking.run_folder import read_summary

# Held by the process that writes records and checkpoints, and by its launcher.
WRITER_LOCK, LAUNCHER_LOCK = ".writing.lock", ".lock"

log = logging.getLogger(__name__)


def find_checkpoint(path: str, file: str, output_root: str = "outputs", tracking_uri: str | None = None) -> Path:
    """The checkpoint at ``path``: that file, or ``file`` of a run folder or of an MLflow run, or a registered model's.

    Args:
        path: A file, a run folder, ``runs:/<MLflow run id>`` or ``models:/<name>@<alias>``.
        file: ``best.pt`` or ``last.pt``.
        output_root: See `pspexp.tracking.mlflow_client.resolve_uri`.
        tracking_uri: See `pspexp.tracking.mlflow_client.resolve_uri`.

    Raises:
        UserError: It does not exist.
    """
    if path.startswith("models:/"):
        from pspexp.tracking.mlflow_client import download_model

        return download_model(path, tracking_uri, output_root)
    if path.startswith("runs:/") or Path(path).is_dir():
        return find_file(path, f"checkpoints/{file}", output_root, tracking_uri)
    return require_file(path, Path(path), "checkpoint")


def find_file(run: str, file: str, output_root: str = "outputs", tracking_uri: str | None = None) -> Path:
    """A file of a run; for artifacts on a server, a temporary copy.

    Args:
        run: A run folder or ``runs:/<MLflow run id>``.
        file: Its path in the run folder.
        output_root: As in `find_checkpoint`.
        tracking_uri: As in `find_checkpoint`.

    Raises:
        UserError: It does not exist.
    """
    if run.startswith("runs:/"):
        from pspexp.tracking.mlflow_client import download_file

        return download_file(run.removeprefix("runs:/").strip("/"), file, tracking_uri, output_root)
    return require_file(run, Path(run) / file, "checkpoint" if file.startswith("checkpoints/") else file)


def require_file(where: str, file: Path, what: str) -> Path:
    """``file``; raises a UserError that names ``where`` if it does not exist."""
    if not file.is_file():
        raise UserError(f"{where}: no {what} there (looked for {file.absolute()})")
    return file


def run_folder(checkpoint: Path) -> Path | None:
    """The run folder of a checkpoint (``<run>/checkpoints/last.pt``) or exported file; None for a file elsewhere."""
    folder = checkpoint.absolute().parent.parent
    known = checkpoint.absolute().parent.name in ("checkpoints", "export")
    return folder if known and (folder / "config.yaml").is_file() else None


def is_own(place: str, output_root: str, tracking_uri: str | None) -> bool:
    """Whether a run or a file belongs to a run folder, or to MLflow's records in a local folder.

    Args:
        place: A file, a run folder, ``runs:/<MLflow run id>`` or ``models:/…``.
        output_root: See `pspexp.tracking.mlflow_client.resolve_uri`.
        tracking_uri: See there.
    """
    if place.startswith("runs:/"):
        from pspexp.tracking.mlflow_client import resolve_uri, sqlite_file

        return sqlite_file(resolve_uri(tracking_uri, output_root)) is not None
    if place.startswith("models:/"):
        return False
    return (Path(place) / "config.yaml").is_file() or run_folder(Path(place)) is not None


def latest_unfinished(
    parent: Path, matches: Callable[[Path], bool], continues: Callable[[Path], bool] = lambda folder: False
) -> Path | None:
    """The latest of `unfinished` whose ``last.pt`` ``matches``."""
    return next((folder for folder in unfinished(parent, continues) if matches(folder / "checkpoints/last.pt")), None)


def unfinished(parent: Path, continues: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """The run folders in ``parent`` that can be resumed: with a ``last.pt``, unfinished and not in use; latest first.

    Args:
        parent: The folder.
        continues: Whether a run folder is meant although its run is finished.
    """
    saved = sorted(parent.glob("*/checkpoints/last.pt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for folder in (file.parent.parent for file in saved):
        finished = read_summary(folder).get("status") == "FINISHED"
        if (not finished or continues(folder)) and not is_locked(folder):
            yield folder


@contextmanager
def run_dir_lock(folder: Path, lock: str = LAUNCHER_LOCK, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder against other processes; the operating system releases the lock if this process is killed.

    Args:
        folder: Created if missing.
        lock: Name of the lock file.
        wait: Wait until the process that holds the lock releases it, instead of raising.

    Raises:
        UserError: Another process holds the lock, or the folder cannot be written.
    """
    file_lock = FileLock(folder / lock)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file_lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(f"{folder}: another process is writing there; wait, or choose another folder") from None
        log.warning("%s: waiting for another process that is still writing there", folder)
        file_lock.acquire()
    except OSError as error:  # Timeout is one, too
        raise UserError(f"{folder}: cannot be written ({error}); choose another folder") from error
    try:
        yield
    finally:
        file_lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process has locked a run folder."""
    try:
        with run_dir_lock(folder):
            return False
    except UserError:
        return True
