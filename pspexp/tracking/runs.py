"""Finding earlier runs and their checkpoints."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pspexp.errors import UserError
from pspexp.tracking.local import read_summary


def find_checkpoint(path: str, file: str, tracking: Mapping[str, Any]) -> Path:
    """The checkpoint file that ``path`` means: itself, or ``file`` of a run folder or of an MLflow run.

    Args:
        path: a file, a run folder or ``runs:/<MLflow run id>``.
        file: ``best.pt`` or ``last.pt``.
        tracking: the ``tracking`` node, which tells where MLflow's records are.

    Raises:
        UserError: there is none.
    """
    if path.startswith("runs:/"):
        from pspexp.tracking.mlflow import download_checkpoint  # MLflow takes seconds to import

        run_id = path.removeprefix("runs:/").strip("/")
        return download_checkpoint(run_id, file, tracking.get("tracking_uri"), tracking.get("output_root", "outputs"))
    found = Path(path) / "checkpoints" / file if Path(path).is_dir() else Path(path)
    if not found.is_file():
        raise UserError(f"{path}: no checkpoint there (looked for {found.absolute()})")
    return found


def run_folder(checkpoint: Path) -> Path:
    """The run folder that a checkpoint file lies in (``<run>/checkpoints/last.pt``)."""
    return checkpoint.absolute().parent.parent


def newest_unfinished(parent: Path, same: Callable[[Path], bool]) -> Path | None:
    """The youngest run folder below ``parent`` that did not finish, has a ``last.pt`` and for which ``same`` holds."""
    saved = sorted(parent.glob("*/checkpoints/last.pt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in saved:
        folder = run_folder(file)
        if read_summary(folder).get("status") != "FINISHED" and same(file):
            return folder
    return None
