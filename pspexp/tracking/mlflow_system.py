"""MLflow's own record of the use of CPU, memory, disk, network and GPUs."""

import logging
from typing import Any

from pspexp.errors import setting

log = logging.getLogger(__name__)


def start_system_metrics(run_id: str, uri: str) -> Any:
    """MLflow's monitor of system metrics, running in a thread of its own; None, with a warning, if it cannot run."""
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        untyped: Any = SystemMetricsMonitor
        monitor = untyped(run_id, resume_logging=True, tracking_uri=uri)
        monitor.start()  # a daemon thread that logs its errors: it can neither fail the run nor hold it up
    except (ImportError, TypeError) as error:  # TypeError: MLflow is too old to monitor anything but its global URI
        log.warning(
            "%s: not recorded (%s); run pip install --upgrade mlflow 'pspexp[system-metrics]'",
            setting("tracking.system_metrics", True),
            error,
        )
        return None
    return monitor
