"""What happens to a record: local files always, MLflow when on, figures, progress."""

from typing import Literal

from pspexp.tracking.console import Progress
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.mlflow import MLflowTracker
from pspexp.tracking.tracker import SilentTracker, Status, Tracker, View

__all__ = [
    "LocalTracker",
    "MLflowTracker",
    "Progress",
    "SilentTracker",
    "Status",
    "Tracker",
    "View",
    "mlflow_views",
    "no_views",
]


def mlflow_views(
    experiment: str,
    output_root: str,
    tracking_uri: str | None = None,
    log_checkpoints: Literal["best", "last", "all", "none"] = "all",
) -> list[View]:
    """Local files and MLflow; arguments as in `MLflowTracker`."""
    return [MLflowTracker(experiment, output_root, tracking_uri, log_checkpoints)]


def no_views(experiment: str = "pspexp") -> list[View]:
    """Local files only. `experiment` has no effect: recipes that set it shall work without MLflow too."""
    return []
