"""A finished sweep over learning rate and batch size, in which one job of five failed."""

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import PSPNET18, run_commands

# Four jobs finish; the fifth fails because its batch is too small, and the sixth is not started.
GRID = ("optimizer.lr=0.01,0.001", "loader.batch_size=2,4,1", "sweep.fail_fast=true")
LEARNING = (
    *("optimizer=adamw", "model.output_stride=16", "model.pyramid_channels=16", "model.head_channels=32"),
    *("dataset.num_train=24", "dataset.num_val=4", "dataset.image_size=64", "crop_size=65"),
    *("trainer.epochs=5", "trainer.log_every=2", "tracking=mlflow", "tracking.experiment=shapes"),
)


@dataclass(frozen=True)
class Job:
    """A job as recorded in its run folder."""

    name: str
    row: dict[str, str]
    folder: Path

    @property
    def lr(self) -> str:
        return self.row["optimizer.lr"]

    @property
    def batch_size(self) -> int:
        return int(self.row["loader.batch_size"])

    @property
    def status(self) -> str:
        status: str = self._summary["status"]
        return status

    @property
    def best(self) -> float:
        value: float = self._summary["best"]["best/mean_iou"]
        return value

    @property
    def run_id(self) -> str:
        run_id: str = self._summary["mlflow_run_id"]
        return run_id

    @property
    def ious(self) -> dict[str, float]:
        """The IoU of each class, from its table."""
        with (self.folder / "tables" / "val_iou.csv").open() as file:
            return {row["class"]: float(row["iou"]) for row in csv.DictReader(file)}

    @property
    def validations(self) -> int:
        """The number of validations."""
        return sum("val/mean_iou" in line for line in (self.folder / "metrics.jsonl").read_text().splitlines())

    @property
    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary


@dataclass(frozen=True)
class FinishedSweep:
    """The records of a sweep."""

    sweep_id: str
    store: str
    jobs: Sequence[Job]

    @property
    def experiment_id(self) -> str:
        return str(self._client.get_run(self.jobs[0].run_id).info.experiment_id)

    @property
    def overview_id(self) -> str:
        """The run that summarizes the sweep."""
        (run,) = self._client.search_runs([self.experiment_id], "tags.kind = 'sweep'")
        return str(run.info.run_id)

    @property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.store)

    @property
    def finished(self) -> list[Job]:
        """The finished jobs, best first."""
        return sorted((job for job in self.jobs if job.status == "FINISHED"), key=lambda job: -job.best)

    @property
    def failed(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "FAILED"]


def run_example_sweep(home: Path) -> FinishedSweep:
    """Run the sweep in ``home``, tracked with MLflow."""
    folder = home / "outputs" / "sweeps" / "learning"
    with suppress(SystemExit):  # exit code 1, because a job fails
        run_commands(home, ("-m", *PSPNET18, *LEARNING, *GRID, f"hydra.sweep.dir={folder}"))
    with (folder / "sweep.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] != "NOT STARTED"]
    jobs = [
        Job(f"lr={row['optimizer.lr']},batch_size={row['loader.batch_size']}", row, folder / row["folder"])
        for row in rows
    ]
    sweep_id: str = json.loads((folder / "sweep.json").read_text())["id"]
    return FinishedSweep(sweep_id, f"sqlite:///{home / 'outputs' / 'mlflow.db'}", jobs)
