"""Registers an ONNX file in MLflow as a model that can be served."""

import base64
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from pspexp.errors import UserError
from pspexp.tracking import runs
from pspexp.tracking.mlflow_client import TRANSFER_LIMITS, limits, quiet, resolve_uri, tracking
from pspexp.tracking.run_folder import read_summary
from pspexp.utils.text import one_line

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[2]
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pillow")  # of the served model
CURL = (
    """base64 < IMAGE.jpg | tr -d '\\n' | sed 's/.*/{"dataframe_records": [{"image": "&"}]}/' """
    "| curl -s http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' -d @- "
    """| python3 -c 'import base64, json, sys; """
    """sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["predictions"][0]))' > mask.png"""
)


def register(file: Path, config: DictConfig, name: str, alias: str | None) -> str:
    """Log an ONNX file with the interface ``image`` as a model of the checkpoint's run, and register it.

    Args:
        file: The file.
        config: The configuration, for MLflow's address and the checkpoint.
        name: Name of the registered model.
        alias: Alias of the new version.

    Returns:
        The new version.

    Raises:
        UserError: MLflow refuses it or cannot be reached.
    """
    uri = resolve_uri(config.tracking.get("tracking_uri"), config.output_root)
    folder = runs.run_folder(Path(config.checkpoint.path))
    run_id = read_summary(folder).get("mlflow_run_id") if folder else None
    try:
        settings = {**TRANSFER_LIMITS, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        with limits(settings), quiet(), run_in(uri, run_id, config.tracking.get("experiment", "export")):
            registered = log_model(file, name)
            if alias is not None:
                from mlflow import MlflowClient

                MlflowClient(tracking_uri=uri).set_registered_model_alias(name, alias, registered)
    except Exception as error:  # MLflow raises half a dozen types for the same reasons
        raise UserError(f"export.register={name}: MLflow at {uri}: {one_line(error)}") from error
    address = f"models:/{name}@{alias}" if alias else f"models:/{name}/{registered}"
    log.info("registered %s version %s; serve it with", name, registered)
    log.info("MLFLOW_TRACKING_URI=%s mlflow models serve -m %s -p 5000 --env-manager local", uri, address)
    log.info("%s", CURL)
    return registered


@contextmanager
def run_in(uri: str, run_id: str | None, experiment: str) -> Iterator[None]:
    """MLflow's active run: the one with this id if there is one, else a new one."""
    import mlflow
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    before = client.get_run(run_id).info if run_id else None
    with tracking(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on the code of models
        if run_id is None:
            mlflow.set_experiment(experiment)
        try:
            with mlflow.start_run(run_id=run_id, run_name=None if run_id else "export"):
                yield
        finally:
            if before is not None:  # MLflow has changed them
                client.set_terminated(before.run_id, before.status, before.end_time)


def log_model(file: Path, name: str) -> str:
    """Log the model in the active run and register it; returns its version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    column = Schema([ColSpec(DataType.string, "image")])
    signature = ModelSignature(inputs=column, outputs=Schema([ColSpec(DataType.string)]))
    options: dict[str, Any] = {
        "python_model": str(Path(__file__).with_name("serve.py")),
        "artifacts": {"network": str(file)},
        "code_paths": [str(PACKAGE)],
        "signature": signature,
        "input_example": {"image": [example()]},
        "pip_requirements": [f"{package}=={version(package)}" for package in REQUIREMENTS],
        "registered_model_name": name,
    }
    place = "name" if int(mlflow.__version__.partition(".")[0]) >= 3 else "artifact_path"
    info = mlflow.pyfunc.log_model(**{place: "model"}, **options)
    return str(info.registered_model_version)


def example() -> str:
    """A small PNG in base64."""
    content = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 120, 150)).save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()
