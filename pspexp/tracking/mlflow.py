"""Records a run in MLflow, by batched, synchronous calls (MLflow's asynchronous ones lose data at exit)."""

import getpass
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Literal

from filelock import FileLock

from pspexp.errors import UserError, setting
from pspexp.tracking.logger import Record, Status
from pspexp.tracking.manifest import ID_TAG
from pspexp.tracking.mlflow_client import (
    URI_VARIABLE,
    create_database,
    local_folder,
    quiet,
    remove_misnamed_folders,
    resolve_uri,
    sqlite_file,
)
from pspexp.tracking.mlflow_limits import Names, is_refusal
from pspexp.tracking.mlflow_system import start_system_metrics
from pspexp.tracking.run_folder import read_provenance
from pspexp.tracking.secrets import mask_logins
from pspexp.utils.files import link_atomic
from pspexp.utils.imports import import_in_thread
from pspexp.utils.text import shorten

log = logging.getLogger(__name__)

MAX_PARAM, MAX_TAG, MAX_DIGEST = 6000, 5000, 36  # characters; MLflow truncates or refuses longer ones
MAX_METRICS = 1000  # values in one call
DATABASE_S, SERVER_S = 120.0, 10.0  # to open a run: a new database takes seconds, on a busy machine many
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}  # seconds
STOP_S = 5.0  # for system metrics to stop at the end of a run; a call to a server that is down takes longer


class MLflowLogger:
    """Records a run in MLflow; see `pspexp.tracking.logger.Logger`.

    Args:
        experiment: Name of the experiment; created if missing.
        output_root: Folder of the database and the artifacts (``mlflow.db``, ``mlartifacts``) if no URI is set.
        tracking_uri: None takes ``MLFLOW_TRACKING_URI``, else the database in ``output_root``.
        log_checkpoints: The checkpoints that become artifacts when the run ends.
        system_metrics: Record the use of CPU, memory, disk, network and GPUs every ten seconds, too.
    """

    def __init__(
        self,
        experiment: str,
        output_root: str,
        tracking_uri: str | None = None,
        log_checkpoints: Literal["best", "last", "all", "none"] = "best",
        system_metrics: bool = False,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
        # They log the steps of each connection, and each error that is raised, with a traceback.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        for name, value in LIMITS.items():  # for all calls: the environment must not change while other threads read it
            os.environ.setdefault(name, value)
        self._experiment = experiment
        self._uri = resolve_uri(tracking_uri, output_root)
        database = sqlite_file(self._uri)
        if database is not None:
            with suppress(OSError):  # reported when the run is opened; not created then: its disk may have been removed
                database.parent.mkdir(parents=True, exist_ok=True)
        self.open_wait_s = SERVER_S if database is None else DATABASE_S
        self._checkpoints = {"all": {"best.pt", "last.pt"}, "none": set[str]()}.get(
            log_checkpoints, {f"{log_checkpoints}.pt"}
        )
        self._system_metrics = system_metrics
        self._monitor: Any = None
        self._names = Names()
        self._client: Any = None
        self._run_id, self._dataset = "", ""
        self._artifacts: Path | None = None  # the folder of a local store

    def __str__(self) -> str:
        return mask_logins(f"MLflow at {self._uri}")

    def open(self, *, run_id: str | None, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
        """Start a run or continue ``run_id``; one that this MLflow does not have is replaced by a new run."""
        import_in_thread("mlflow")
        with self._call():
            from mlflow.entities import Param, RunTag

            experiment_id = self._connect()
            self._dataset = tags.get("dataset", "data")
            tags = {**tags, **_source_tags(tags)}
            run_id = run_id or self._find(experiment_id, tags.get(ID_TAG))
            known = self._reopen(run_id) if run_id else None
            if known is None:
                id_tag = {ID_TAG: tags[ID_TAG]} if ID_TAG in tags else {}
                self._run_id = self._client.create_run(experiment_id, run_name=name, tags=id_tag).info.run_id
            # A param's value cannot be replaced; what has changed in a resumed run is in its config.yaml.
            new = {
                self._names(key): shorten(value, MAX_PARAM, " … (complete in config.yaml)")
                for key, value in params.items()
            }
            self._artifacts = local_folder(self._client.get_run(self._run_id).info.artifact_uri)
            self._client.log_batch(
                self._run_id,
                params=[Param(key, value) for key, value in new.items() if key not in (known or {})],
                tags=[RunTag(key, shorten(value, MAX_TAG)) for key, value in tags.items()],
            )
            if self._system_metrics and self._monitor is None:
                self._monitor = start_system_metrics(self._run_id, self._uri)
        return self._run_id

    def metrics(self, values: Mapping[str, float], *, step: int, time_s: float) -> None:
        """Record values in one call."""
        self.records([Record(values, step, time_s)])

    def records(self, records: Sequence[Record]) -> None:
        """Record values in as few calls as possible. The same value is stored once, however often it is sent."""
        from mlflow.entities import Metric

        found = [
            Metric(self._names(name), value, int(1000 * record.time_s), record.step)
            for record in records
            for name, value in record.values.items()
        ]
        for first in range(0, len(found), MAX_METRICS):
            self._log_metrics(found[first : first + MAX_METRICS])

    def _log_metrics(self, metrics: Sequence[Any]) -> None:
        try:
            with self._call():
                self._client.log_batch(self._run_id, metrics=metrics)
        except ValueError as error:
            if len(metrics) == 1:
                raise ValueError(f"{metrics[0].key} of step {metrics[0].step}: {error}") from error
            refused = []
            for metric in metrics:  # the others are fine
                try:
                    self._log_metrics([metric])
                except ValueError as single:
                    refused.append(single)
            if refused:
                raise refused[0] from error

    def files(self, folder: Path, paths: Sequence[str]) -> None:
        """Upload files; checkpoints as ``log_checkpoints`` says."""
        with self._call():
            for path in paths:
                parent, name = PurePosixPath(path).parent.as_posix(), PurePosixPath(path).name
                unwanted = parent == "checkpoints" and name not in self._checkpoints
                if unwanted or not (folder / path).exists():  # pictures of an earlier evaluation are removed
                    continue
                self._upload(folder, path, parent)
                if path == "provenance.json":
                    self._log_data(read_provenance(folder)["attempts"][-1]["data"])

    def _upload(self, folder: Path, path: str, parent: str) -> None:
        """Upload a file; a local store gets a hard link to a checkpoint, which takes no space."""
        root = self._artifacts and (self._artifacts / path)
        if root is not None and parent == "checkpoints" and link_atomic(folder / path, root):
            return
        self._client.log_artifact(self._run_id, str(folder / path), None if parent == "." else parent)

    def _log_data(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """List the data on the run's page: a data set for each role, with its fingerprint."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=self._dataset,
                    digest=str(facts["fingerprint"])[:MAX_DIGEST],
                    source_type="local",
                    source=json.dumps({"dataset": self._dataset}),
                    profile=json.dumps({"images": facts["images"]}),
                ),
                [InputTag("mlflow.data.context", {"train": "training", "val": "validation"}.get(role, role))],
            )
            for role, facts in data.items()
        ]
        self._client.log_inputs(self._run_id, inputs)

    def note(self, markdown: str) -> None:
        """Set the run's description; the last lines of a long one are cut off."""
        while len(markdown) > MAX_TAG:
            markdown = markdown.rpartition("\n")[0]
        with self._call():
            self._client.set_tag(self._run_id, "mlflow.note.content", markdown)

    def close(self, status: Status) -> None:
        """End the run."""
        with self._call():
            self._stop_system_metrics(STOP_S)
            self._client.set_terminated(self._run_id, status)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Turn MLflow's errors into two: `ConnectionError` if another attempt may succeed, else `ValueError`."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            kind = ValueError if is_refusal(error) else ConnectionError
            raise kind(f"{type(error).__name__}: {error}") from error

    def _stop_system_metrics(self, wait_s: float) -> None:
        if self._monitor is not None:
            stopping = Thread(target=self._monitor.finish, daemon=True)  # it may be waiting for a server that is down
            self._monitor = None
            with quiet():
                stopping.start()
                stopping.join(wait_s)

    def _connect(self) -> str:
        """Create the client; returns the experiment's id."""
        from mlflow import MlflowClient

        database = sqlite_file(self._uri)
        if database is None:
            self._client = MlflowClient(tracking_uri=self._uri)
            return self._experiment_id(None)
        # If several processes created the tables of a new database at the same time, all but one would fail.
        with FileLock(f"{database}.lock", timeout=120):
            create_database(database)
            database.stat()  # if its folder was moved meanwhile, MLflow would create another one in its place
            self._client = MlflowClient(tracking_uri=self._uri)
            experiment_id = self._experiment_id((database.parent / "mlartifacts").as_uri())
            remove_misnamed_folders(self._uri)
            return experiment_id

    def _experiment_id(self, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(self._client.create_experiment(self._experiment, artifact_location=artifacts))
            except MlflowException:  # another run has just created it, or it cannot be created
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            key = setting("tracking.experiment", self._experiment)
            raise UserError(
                f"{key}: was deleted in MLflow; restore it with mlflow experiments restore -x {found.experiment_id} "
                f"({URI_VARIABLE}={self._uri}), or choose another {setting('tracking.experiment')}"
            )
        return str(found.experiment_id)

    def _find(self, experiment_id: str, own_id: str | None) -> str | None:
        """The run with an ``ID_TAG``: a process was killed, or lost the connection, before it knew the run's id."""
        if own_id is None:
            return None
        found = self._client.search_runs([experiment_id], f"tags.`{ID_TAG}` = '{own_id}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _reopen(self, run_id: str) -> Mapping[str, str] | None:
        """The params of a run that is set back to RUNNING; None if there is no such run."""
        from mlflow.exceptions import MlflowException

        try:
            known = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            known = None
        if known is None or known.info.lifecycle_stage == "deleted":
            log.warning("%s has no run %s to resume: starting a new one", self, run_id)
            return None
        self._client.update_run(run_id, status="RUNNING")
        self._run_id = str(run_id)
        return dict(known.data.params)


def _source_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that MLflow's own pages read."""
    found = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    if commit := tags.get("git_commit"):
        found["mlflow.source.git.commit"] = commit
    with suppress(KeyError, OSError):  # a container's user may have no name
        found["mlflow.user"] = getpass.getuser()
    return found
