"""What is known about a run that is to be compared."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pspexp.tracking.run_folder import finite
from pspexp.utils.trees import flatten

SPLITS = ("val", "test")
SCORES = ("mean_iou", "mean_acc", "overall_acc", "freqw_acc", "loss")
BEST = ("best/mean_iou", "best/epoch")

Table = dict[str, float | None]
"""Class name → IoU as a fraction; None where undefined."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: what people call it.
        where: its folder as the user reaches it, or ``runs:/<MLflow run id>``.
        status: ``FINISHED``, ``FAILED``, ``KILLED``, ``RUNNING`` or ``UNKNOWN``.
        config: dotted key → value as text; empty if the run ended before it was written.
        is_whole: whether ``config`` holds every key; else only what was typed is known.
        metrics: of the best and the last evaluation, by name; empty unless it is finished: those of a run that
            stopped somewhere do not compare.
        tables: ``val`` or ``test`` → IoU of the classes; empty likewise.
        started_s: seconds since 1970.
        folder: its folder, if that is known.
        mlflow_id: its MLflow run, if there is one.
        typed: dotted keys that were set on its command line.
    """

    name: str
    where: str
    status: str
    config: dict[str, str]
    is_whole: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    started_s: float = 0.0
    folder: Path | None = None
    mlflow_id: str | None = None
    typed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RunSet:
    """Runs in the order in which they were named, what to tell about them, and where they come from."""

    runs: list[Run]
    notes: list[str]
    source: str


def compared_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Those metrics that a comparison shows; NaN and infinities, which MLflow keeps, are none."""
    names = [*BEST, *(f"{split}/{score}" for split in SPLITS for score in SCORES)]
    return finite({name: float(values[name]) for name in names if values.get(name) is not None})


def is_whole(config: Mapping[str, str], status: str, *, began: bool) -> bool:
    """Whether every key of a configuration is the run's own.

    Where a checkpoint, or the run to do again, cannot be read, defaults stand in the place of what it would have given.
    """
    takes = config.get("mode") == "test" or config.get("rerun", "null") != "null"
    return began or status != "FAILED" or not takes


def typed_part(config: Mapping[str, str], typed: Set[str]) -> dict[str, str]:
    """The keys and options of a configuration that were typed."""
    return {key: value for key, value in config.items() if key.removeprefix("choices.") in typed}


def as_text(config: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration as dotted keys and texts, written as on the command line."""
    return {key: text(value) for key, value in flatten(config).items()}


def text(value: Any) -> str:
    """A value as on the command line; MLflow's params hold Python's words for the same."""
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(str(value), str(value))
