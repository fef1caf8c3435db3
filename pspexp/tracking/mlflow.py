"""Shows a run in MLflow: one batched call a record, nothing asynchronous (that loses data at exit)."""

import atexit
import getpass
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from pspexp.errors import UserError
from pspexp.tracking.secrets import mask_logins

if TYPE_CHECKING:
    from pspexp.tracking.tracker import Status

logger = logging.getLogger(__name__)

MAX_PARAM, MAX_TAG, MAX_NAME = 6000, 5000, 250  # characters; MLflow cuts or refuses what is longer
_CUT = " … (whole in config.yaml)"
# MLflow's own patience is 120 s a try and four minutes of retries for each call.
_CALL_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_UPLOAD_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}


class MLflowTracker:
    """A view of a run in MLflow; see `pspexp.tracking.tracker.Logger`.

    Args:
        experiment: made when missing.
        output_root: holds the database and the artifacts (``mlflow.db``, ``mlartifacts``) if no URI is set.
        tracking_uri: None takes ``MLFLOW_TRACKING_URI``, else the database in `output_root`.
        log_checkpoints: which checkpoints become artifacts when the run ends.
    """

    def __init__(
        self,
        experiment: str,
        output_root: str,
        tracking_uri: str | None = None,
        log_checkpoints: Literal["best", "last", "all", "none"] = "all",
    ) -> None:
        self._experiment = experiment
        self._uri = resolve_uri(tracking_uri, output_root)
        self._checkpoints = {"all": {"best.pt", "last.pt"}, "none": set[str]()}.get(
            log_checkpoints, {f"{log_checkpoints}.pt"}
        )
        self._names = Names()
        self._shown: dict[str, tuple[int, int]] = {}
        self._client: Any = None
        self._run_id = ""

    def __str__(self) -> str:
        return mask_logins(f"MLflow at {self._uri}")

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Starts a run or goes on with `run_id`; one that this MLflow does not know is replaced by a new run."""
        with _limits(_CALL_LIMITS), _quiet():
            from mlflow.entities import Param, RunTag

            experiment_id = self._connect()
            tags = {**tags, **_who(tags)}
            known = self._reopen(run_id) if run_id else None
            if known is None:
                self._run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
            # A param cannot be given a second value; what a resumed run changed stands in its config.yaml.
            new = {self._names(key): cut(value, MAX_PARAM, _CUT) for key, value in params.items()}
            self._client.log_batch(
                self._run_id,
                params=[Param(key, value) for key, value in new.items() if key not in (known or {})],
                tags=[RunTag(key, cut(value, MAX_TAG)) for key, value in tags.items()],
            )
        return self._run_id

    def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
        """Shows values in one call."""
        from mlflow.entities import Metric

        at_ms = int(1000 * time_s)
        with _limits(_CALL_LIMITS):
            self._client.log_batch(
                self._run_id,
                metrics=[Metric(self._names(name), value, at_ms, step) for name, value in values.items()],
            )

    def files(self, folder: Path, paths: Sequence[str]) -> None:
        """Copies files that are new or changed; checkpoints only as `log_checkpoints` says."""
        with _limits(_UPLOAD_LIMITS):
            for path in paths:
                parent, name = PurePosixPath(path).parent.as_posix(), PurePosixPath(path).name
                state = (folder / path).stat()
                version = (state.st_mtime_ns, state.st_size)
                unwanted = parent == "checkpoints" and name not in self._checkpoints
                if unwanted or self._shown.get(path) == version:
                    continue
                self._client.log_artifact(self._run_id, str(folder / path), None if parent == "." else parent)
                self._shown[path] = version

    def note(self, markdown: str) -> None:
        """Shows Markdown as the run's description; of a long one, lines at the end are left out."""
        while len(markdown) > MAX_TAG:
            markdown = markdown.rpartition("\n")[0]
        with _limits(_CALL_LIMITS):
            self._client.set_tag(self._run_id, "mlflow.note.content", markdown)

    def close(self, status: "Status") -> None:
        """Ends the run."""
        with _limits(_CALL_LIMITS):
            self._client.set_terminated(self._run_id, status)

    def _connect(self) -> str:
        """Makes the client; returns the experiment's id."""
        from mlflow import MlflowClient

        database = sqlite_file(self._uri)
        if database is None:
            self._client = MlflowClient(tracking_uri=self._uri)
            return self._experiment_id(None)
        database.parent.mkdir(parents=True, exist_ok=True)
        # Of processes that start together in a fresh folder and create the tables, all but one would fail.
        with FileLock(f"{database}.lock", timeout=120):
            self._client = MlflowClient(tracking_uri=self._uri)
            return self._experiment_id((database.parent / "mlartifacts").as_uri())

    def _experiment_id(self, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self._experiment, artifact_location=artifacts))
            except MlflowException:  # another run made it in between, or it truly cannot be made
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _reopen(self, run_id: str) -> Mapping[str, str] | None:
        """The params of a run set back to RUNNING; None when there is no such run."""
        from mlflow.exceptions import MlflowException

        try:
            known = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("%s has no run %s to go on with: starting a new one", self, run_id)
            return None
        self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id
        return dict(known.data.params)


class Names:
    """Turns any name into one that MLflow accepts everywhere; two names never become one."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """``iou/a+b`` to ``iou/a_b`` (``iou/a_b_2`` when that is taken)."""
        if name not in self._given:
            # MLflow reads names as paths: no empty, "." or ".." parts.
            parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
            clean = "/".join("_" if part in ("", ".", "..") else part for part in parts)[: MAX_NAME - 4]
            taken, number, unique = set(self._given.values()), 2, clean
            while unique in taken:
                unique, number = f"{clean}_{number}", number + 1
            self._given[name] = unique
        return self._given[name]


def resolve_uri(tracking_uri: str | None, output_root: str) -> str:
    """Where MLflow's records are: as told, else as the environment says, else a database in `output_root`."""
    default = f"sqlite:///{Path(output_root).resolve() / 'mlflow.db'}"
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def download_file(run_id: str, file: str, tracking_uri: str | None, output_root: str) -> Path:
    """A file of an MLflow run: where it lies, or a copy if that is far away, which goes when Python ends.

    Args:
        run_id: of the run.
        file: path of the artifact, such as ``checkpoints/best.pt``.
        tracking_uri: see `MLflowTracker`.
        output_root: see `MLflowTracker`.

    Raises:
        UserError: it could not be had.
    """
    uri = resolve_uri(tracking_uri, output_root)
    with reader(uri, f"runs:/{run_id}") as client:
        try:
            root = urlsplit(client.get_run(run_id).info.artifact_uri)
            if root.scheme in ("", "file") and root.path.startswith("/"):  # MLflow would copy it, and leave the copy
                return Path(url2pathname(root.path), file).resolve(strict=True)
            copies = _temporary_folder() / run_id
            copies.mkdir(exist_ok=True)
            return Path(client.download_artifacts(run_id, file, str(copies)))
        except Exception as error:  # MLflow raises half a dozen kinds for the same reasons
            raise UserError(mask_logins(f"runs:/{run_id}: no {file} from {uri}: {one_line(error)}")) from error


@cache
def _temporary_folder() -> Path:
    folder = mkdtemp(prefix="pspexp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def sweep_filter(sweep_id: str) -> str:
    """What finds the jobs of a sweep, in MLflow's filter language; that knows no escaped quotes."""
    mark = '"' if "'" in sweep_id else "'"
    return f"tags.sweep = {mark}{sweep_id}{mark}"


def one_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return " ".join(str(error).split())[:300]


@contextmanager
def reader(uri: str, what: str) -> Iterator[Any]:
    """An ``MlflowClient`` to read with, quiet and of bounded patience.

    Args:
        uri: see `resolve_uri`.
        what: is read, for messages.

    Raises:
        UserError: there are no records, or MLflow cannot read them.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():  # MLflow would create it
        raise UserError(f"{what}: there are no MLflow records at {database}; set tracking.tracking_uri or output_root")
    try:
        with _limits({**_UPLOAD_LIMITS, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}), _quiet():
            from mlflow import MlflowClient

            yield MlflowClient(tracking_uri=uri)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(mask_logins(f"{what}: MLflow at {uri} says: {one_line(error)}")) from error


def cut(text: str, length: int, end: str = "…") -> str:
    """`text` of at most `length` characters, `end` where some are missing."""
    return text if len(text) <= length else text[: length - len(end)] + end


def sqlite_file(uri: str) -> Path | None:
    """The database file of a ``sqlite:///`` URI; None for other URIs."""
    prefix = "sqlite:///"
    return Path(uri[len(prefix) :].partition("?")[0]).resolve() if uri.startswith(prefix) else None


def _who(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags MLflow's own pages read."""
    found = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    if commit := tags.get("git_commit"):
        found["mlflow.source.git.commit"] = commit
    with suppress(KeyError, OSError):  # a container's user may have no name
        found["mlflow.user"] = getpass.getuser()
    return found


@contextmanager
def _limits(limits: Mapping[str, str]) -> Iterator[None]:
    """Bounds MLflow's patience, which it reads at each call; what the user has set stays."""
    mine = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps a hundred lines about the tables of a new database from the console, and usage statistics at home."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(disabled)
        # Old releases of MLflow put their own handler in the place of all others when they make a database.
        root.handlers[:] = handlers
        root.setLevel(level)
