"""Finding earlier runs and their checkpoints."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pspexp.errors import UserError
from pspexp.tracking.local import read_summary

WRITING = ".writing.lock"  # held by the process that writes records and states; who launched it holds another

logger = logging.getLogger(__name__)


def find_checkpoint(path: str, file: str, output_root: str = "outputs", tracking_uri: str | None = None) -> Path:
    """The checkpoint file that ``path`` means: itself, or ``file`` of a run folder or of an MLflow run.

    Args:
        path: a file, a run folder or ``runs:/<MLflow run id>``.
        file: ``best.pt`` or ``last.pt``.
        output_root, tracking_uri: where MLflow's records are, see `pspexp.tracking.mlflow.MLflowTracker`.

    Raises:
        UserError: there is none.
    """
    if path.startswith("runs:/") or Path(path).is_dir():
        return find_file(path, f"checkpoints/{file}", output_root, tracking_uri)
    return existing(path, Path(path), "checkpoint")


def find_file(run: str, file: str, output_root: str = "outputs", tracking_uri: str | None = None) -> Path:
    """A file of a run; of an MLflow run far away a copy in a temporary folder.

    Args:
        run: a run folder or ``runs:/<MLflow run id>``.
        file: its path in the run folder.
        output_root, tracking_uri: as in `find_checkpoint`.

    Raises:
        UserError: there is none.
    """
    if run.startswith("runs:/"):
        from pspexp.tracking.mlflow import download_file  # MLflow takes seconds to import

        return download_file(run.removeprefix("runs:/").strip("/"), file, tracking_uri, output_root)
    return existing(run, Path(run) / file, "checkpoint" if file.startswith("checkpoints/") else file)


def existing(where: str, file: Path, what: str) -> Path:
    """``file``; UserError that names ``where`` if it is missing."""
    if not file.is_file():
        raise UserError(f"{where}: no {what} there (looked for {file.absolute()})")
    return file


def run_folder(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in (``<run>/checkpoints/last.pt``); None for a file elsewhere."""
    folder = checkpoint.absolute().parent.parent
    return folder if checkpoint.parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def newest_unfinished(parent: Path, same: Callable[[Path], bool]) -> Path | None:
    """The youngest run folder below ``parent`` that did not finish, has a ``last.pt`` and for which ``same`` holds."""
    saved = sorted(parent.glob("*/checkpoints/last.pt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in saved:
        folder = file.parent.parent
        if read_summary(folder).get("status") != "FINISHED" and not is_claimed(folder) and same(file):
            return folder
    return None


@contextmanager
def run_dir_lock(folder: Path, lock: str = ".lock", *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, so that no other process writes into it; the system lets go when this process ends.

    Args:
        folder: to hold; made when missing.
        lock: name of the file that is locked.
        wait: until the process that holds it lets go, instead of raising.

    Raises:
        UserError: another process holds it, or it cannot be made or written.
    """
    held = FileLock(folder / lock)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(f"{folder}: another process is writing there; wait for it or choose another") from None
        logger.warning("%s: waiting for another process that is still writing there", folder)
        held.acquire()
    except OSError as error:  # Timeout is one, too
        raise UserError(f"{folder}: cannot be written ({error}); choose another folder") from error
    try:
        yield
    finally:
        held.release()


def is_claimed(folder: Path) -> bool:
    """Whether another process holds a run folder."""
    try:
        with run_dir_lock(folder):
            return False
    except UserError:
        return True
