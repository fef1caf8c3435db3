"""Records of a run: the run folder, loggers such as MLflow, figures, progress."""

from collections.abc import Mapping
from typing import Any, Literal

from pspexp.tracking.logger import Logger
from pspexp.tracking.mlflow import MLflowLogger


def mlflow_loggers(
    experiment: str,
    output_root: str,
    tracking_uri: str | None = None,
    log_checkpoints: Literal["best", "last", "all", "none"] = "all",
    system_metrics: bool = False,
    register: str | None = None,
    loggers: Mapping[str, Any] | None = None,
) -> dict[str, Logger]:
    """MLflow, then further loggers by name; the other arguments are those of `MLflowLogger`.

    ``register`` is for the end of a training, see `pspexp.jobs.train`.
    """
    mlflow = MLflowLogger(experiment, output_root, tracking_uri, log_checkpoints, system_metrics)
    return {"mlflow": mlflow, **(loggers or {})}


def other_loggers(experiment: str = "pspexp", loggers: Mapping[str, Any] | None = None) -> dict[str, Logger]:
    """Only the given loggers. ``experiment`` is ignored, so that experiments that set it also work without MLflow."""
    return dict(loggers or {})
