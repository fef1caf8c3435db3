"""What happens to a record: local files always, MLflow when on, figures, progress."""

from typing import Literal

from pspexp.tracking.console import Progress
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.mlflow import MLflowTracker
from pspexp.tracking.tracker import Logger, SilentTracker, Status, Tracker

__all__ = [
    "LocalTracker",
    "MLflowTracker",
    "Progress",
    "SilentTracker",
    "Status",
    "Tracker",
    "Logger",
    "mlflow_views",
    "no_views",
]


def mlflow_views(
    experiment: str,
    output_root: str,
    tracking_uri: str | None = None,
    log_checkpoints: Literal["best", "last", "all", "none"] = "all",
) -> list[Logger]:
    """Local files and MLflow; arguments as in `MLflowTracker`."""
    return [MLflowTracker(experiment, output_root, tracking_uri, log_checkpoints)]


def no_views(experiment: str = "pspexp") -> list[Logger]:
    """Local files only. `experiment` has no effect: recipes that set it shall work without MLflow too."""
    return []
