"""The runs of a comparison, wherever they were read from."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pspexp.tracking.run_folder import finite
from pspexp.utils.trees import flatten

SPLITS = ("val", "test")
SCORES = ("mean_iou", "mean_acc", "overall_acc", "freqw_acc", "loss", "mean_dice")
METRICS = ("best/mean_iou", "best/epoch", *(f"{split}/{score}" for split in SPLITS for score in SCORES))

Table = dict[str, float | None]
"""Class name → IoU as a fraction; None where undefined."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: Its name, not necessarily unique.
        where: Its folder as the user specified it, or ``runs:/<MLflow run id>``.
        status: ``FINISHED``, ``FAILED``, ``KILLED``, ``RUNNING`` or ``UNKNOWN``.
        config: Dotted key → value as text; empty if the run ended before it was written.
        is_complete: Whether ``config`` has every key; otherwise only explicit overrides are known.
        metrics: Metrics of the best and the last evaluation. Empty unless the run is finished: the metrics of an
            unfinished run are not comparable.
        tables: ``val`` or ``test`` → IoU of the classes. Empty likewise.
        started_s: Start time in seconds since 1970.
        folder: Its absolute folder, if known.
        mlflow_id: The id of its MLflow run, if there is one.
        explicit_keys: Dotted keys set on its command line.
        label: Unique name within a comparison.
    """

    name: str
    where: str
    status: str
    config: dict[str, str]
    is_complete: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    started_s: float = 0.0
    folder: Path | None = None
    mlflow_id: str | None = None
    explicit_keys: frozenset[str] = frozenset()
    label: str = ""


@dataclass(frozen=True)
class RunSet:
    """Runs in the order in which they were specified, notes for the report, and a description of their source."""

    runs: list[Run]
    notes: list[str]
    source: str


def compared_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite values of `METRICS`; MLflow also stores NaN and infinities."""
    return finite({name: float(values[name]) for name in METRICS if values.get(name) is not None})


def is_complete(config: Mapping[str, str], status: str, *, began: bool) -> bool:
    """Whether every value of a configuration is the run's own.

    If a run failed because its checkpoint or the run to repeat could not be read, the configuration contains defaults
    in place of the values that would have been taken from there.
    """
    takes_values = config.get("mode") == "test" or config.get("rerun", "null") != "null"
    return began or status != "FAILED" or not takes_values


def explicit_settings(config: Mapping[str, str], keys: Set[str]) -> dict[str, str]:
    """The settings, chosen options included, whose keys were set on the command line."""
    return {key: value for key, value in config.items() if key.removeprefix("choices.") in keys}


def as_text(config: Mapping[str, Any]) -> dict[str, str]:
    """A configuration as dotted keys and texts in YAML's spelling; MLflow's params are in Python's."""
    yaml = {"None": "null", "True": "true", "False": "false"}
    return {key: yaml.get(str(value), str(value)) for key, value in flatten(config).items()}
