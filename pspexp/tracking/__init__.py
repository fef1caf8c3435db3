"""Records of a run: the run folder, loggers such as MLflow, figures, progress."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from pspexp.tracking.logger import Logger
from pspexp.tracking.mlflow import MLflowLogger

WaitS = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def mlflow_loggers(
    experiment: str,
    output_root: str,
    tracking_uri: str | None = None,
    log_checkpoints: Literal["best", "last", "all", "none"] = "best",
    system_metrics: bool = False,
    register: str | None = None,
    wait_s: WaitS = 30.0,
    loggers: Mapping[str, Any] | None = None,
) -> dict[str, Logger]:
    """MLflow, then further loggers by name; the other arguments are those of `MLflowLogger`.

    ``register`` is for the end of a training, see `pspexp.jobs.train`, and ``wait_s`` for that of any run, see
    `pspexp.tracking.tracker.Tracker`.
    """
    mlflow = MLflowLogger(experiment, output_root, tracking_uri, log_checkpoints, system_metrics)
    return {"mlflow": mlflow, **(loggers or {})}


def other_loggers(
    experiment: str = "pspexp", wait_s: WaitS = 30.0, loggers: Mapping[str, Any] | None = None
) -> dict[str, Logger]:
    """Only the given loggers. ``experiment`` is ignored, so that experiments that set it also work without MLflow."""
    return dict(loggers or {})
