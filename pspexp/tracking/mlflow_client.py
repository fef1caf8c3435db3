"""Access to MLflow: where its records are, quiet calls with bounded retries, files of runs."""

import atexit
import glob
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname
from uuid import uuid4

from pspexp.errors import UserError, setting
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.text import one_line

URI_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
# In the folder itself: if its disk is removed meanwhile, MLflow would create another folder in its place.
CREATE = """
import os, sys
from mlflow import MlflowClient
os.chdir(sys.argv[2])
MlflowClient(sys.argv[1]).search_experiments(max_results=1)
"""
# MLflow's defaults are 120 s per request, and retries for four minutes.
TRANSFER_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}


def resolve_uri(tracking_uri: str | None, output_root: str) -> str:
    """``tracking_uri``, else ``MLFLOW_TRACKING_URI``, else the database in ``output_root``."""
    return tracking_uri or os.environ.get(URI_VARIABLE) or sqlite_uri(Path(output_root).resolve() / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """The URI of a database file, whose path may contain any characters."""
    path, quoted = str(database), quote(str(database))
    if not {"?", "%"}.intersection(path):
        return f"{SQLITE}{path}"
    from sqlalchemy.engine import make_url  # slow to import

    # Only SQLAlchemy 2.1 and later decode paths.
    known = [uri for uri in (f"{SQLITE}{path}", f"{SQLITE}{quoted}") if make_url(uri).database == path]
    return known[0] if known else f"{SQLITE}file:{quoted}?uri=true"  # SQLite's own form, which it decodes itself


def sqlite_file(uri: str) -> Path | None:
    """The database file of a ``sqlite:///`` URI; None for other URIs."""
    if not uri.startswith(SQLITE):
        return None
    path = uri[len(SQLITE) :].partition("?")[0]
    if "%" in path:
        from sqlalchemy.engine import make_url  # as above

        path = make_url(uri).database or ""
        path = unquote(path.removeprefix("file:")) if path.startswith("file:") else path
    return Path(path).resolve()


def remove_misnamed_folders(uri: str) -> None:
    """Remove the empty folders that releases of MLflow create for a path in a URI that they have not decoded."""
    folder = Path(uri.removeprefix(SQLITE)).parent
    with suppress(OSError):  # missing, or in use
        while uri.startswith(SQLITE) and ("%" in str(folder) or folder.parts[:1] == ("file:",)):
            folder.rmdir()
            folder = folder.parent


def create_database(database: Path) -> None:
    """Create an MLflow database if it is missing, all at once: MLflow cannot go on with one that is half created.

    A process of its own creates it: that takes seconds, and writes a hundred lines to the log.

    Raises:
        RuntimeError: It failed; the last line of what it wrote.
    """
    if database.exists() and database.stat().st_size:
        return
    for left in database.parent.glob(f"{glob.escape(database.name)}.new.*"):  # by a process that was killed
        left.unlink()
    new = database.with_name(f"{database.name}.new.{uuid4().hex}")  # MLflow remembers the databases that it knows
    command = [sys.executable, "-c", CREATE, sqlite_uri(Path(new.name)), str(database.parent)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    try:
        database.hardlink_to(new)
    except FileExistsError:  # another program has just created it
        pass
    except OSError:  # a disk without links
        new.replace(database)
    new.unlink(missing_ok=True)


@contextmanager
def reader(uri: str, what: str) -> Iterator[Any]:
    """An ``MlflowClient`` for reading, quiet and with bounded retries.

    Args:
        uri: See `resolve_uri`.
        what: What is read, for messages.

    Raises:
        UserError: There are no records, or MLflow cannot read them.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():  # MLflow would create it
        keys = f"{setting('tracking.tracking_uri')} or {setting('output_root')}"
        raise UserError(f"{what}: there are no MLflow records at {database}; set {keys}")
    try:
        with limits({**TRANSFER_LIMITS, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}), quiet():
            from mlflow import MlflowClient

            yield MlflowClient(tracking_uri=uri)
            remove_misnamed_folders(uri)
    except UserError:
        raise
    except Exception as error:  # MLflow raises half a dozen types for the same reasons
        raise UserError(mask_logins(f"{what}: cannot read MLflow at {uri}: {one_line(error)}")) from error


def download_file(run_id: str, file: str, tracking_uri: str | None, output_root: str) -> Path:
    """A file of an MLflow run: the artifact itself if it is local, else a copy that is deleted when Python exits.

    Args:
        run_id: The run's id.
        file: Path of the artifact, such as ``checkpoints/best.pt``.
        tracking_uri: See `resolve_uri`.
        output_root: See `resolve_uri`.

    Raises:
        UserError: The file is missing, or MLflow cannot read it.
    """
    uri = resolve_uri(tracking_uri, output_root)
    with reader(uri, f"runs:/{run_id}") as client:
        try:
            if root := local_folder(client.get_run(run_id).info.artifact_uri):  # MLflow would keep a copy
                return (root / file).resolve(strict=True)
            copies = _temporary_folder() / run_id
            copies.mkdir(exist_ok=True)
            return Path(client.download_artifacts(run_id, file, str(copies)))
        except Exception as error:  # see `reader`
            raise UserError(mask_logins(f"runs:/{run_id}: no {file} from {uri}: {one_line(error)}")) from error


def delete_run(run_id: str, uri: str) -> None:
    """Delete a run and its artifacts. MLflow keeps a deleted run's metrics until ``mlflow gc``.

    Raises:
        UserError: MLflow cannot be reached.
    """
    with reader(uri, f"runs:/{run_id}") as client:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        try:
            info = client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        repository: Any = get_artifact_repository(info.artifact_uri)
        repository.delete_artifacts()
        if info.lifecycle_stage == "active":
            client.delete_run(run_id)


def local_folder(artifact_uri: str) -> Path | None:
    """The folder of a run's artifacts; None if they are on a server."""
    root = urlsplit(artifact_uri)
    return Path(url2pathname(root.path)) if root.scheme in ("", "file") and root.path.startswith("/") else None


def download_model(model: str, tracking_uri: str | None, output_root: str) -> Path:
    """The ONNX file of a registered model; for artifacts on a server, a copy that is deleted when Python exits.

    Args:
        model: ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        tracking_uri: See `resolve_uri`.
        output_root: See `resolve_uri`.

    Raises:
        UserError: There is no such model, or MLflow cannot read it.
    """
    uri = resolve_uri(tracking_uri, output_root)
    with reader(uri, model):
        import mlflow

        folder = _temporary_folder() / "models" / re.sub(r"\W", "_", model)
        folder.mkdir(parents=True, exist_ok=True)
        with tracking(uri):
            found = Path(mlflow.artifacts.download_artifacts(artifact_uri=model, dst_path=str(folder)))
    files = sorted(found.rglob("*.onnx"))
    if not files:
        key = setting("export.register")
        raise UserError(f"{model}: holds no ONNX file; register one with mode=export {key}=<name>")
    return files[0]


@contextmanager
def tracking(uri: str) -> Iterator[None]:
    """Let MLflow's global functions use the records at ``uri``."""
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    before = os.environ.get(URI_VARIABLE)
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        remove_misnamed_folders(uri)
        # MLflow sets it, for subprocesses.
        os.environ.pop(URI_VARIABLE, None)
        if before is not None:
            os.environ[URI_VARIABLE] = before


@cache
def _temporary_folder() -> Path:
    folder = mkdtemp(prefix="pspexp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def sweep_filter(sweep_id: str) -> str:
    """The filter that finds the jobs of a sweep, in MLflow's filter language, which cannot escape quotes."""
    quote = '"' if "'" in sweep_id else "'"
    return f"tags.sweep = {quote}{sweep_id}{quote}"


@contextmanager
def limits(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables that MLflow reads at each call, except those that the user has set."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress about a hundred log lines on creating a database, and the sending of usage statistics."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(disabled)
        # Old releases of MLflow replace all handlers by their own when they create a database.
        root.handlers[:] = handlers
        root.setLevel(level)
