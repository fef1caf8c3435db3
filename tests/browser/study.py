"""A finished sweep to look at: learning rate × batch size, one job of five failed, and its overview."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pspexp.tracking import MLflowTracker
from tests.conftest import TINY

SWEEP_ID = "2026-11-23_01-00-00-3fa2"
GRID = [("0.01", 2), ("0.01", 4), ("0.001", 2), ("0.001", 4)]
TOO_HIGH = ("1e+30", 4)  # the loss is NaN in the second step
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b")  # told apart more easily than MLflow's own
LEARNS = (
    *("optimizer=adamw", "model.output_stride=16", "model.pyramid_channels=16", "model.head_channels=32"),
    *("dataset.num_train=24", "dataset.num_val=6", "dataset.image_size=64", "crop_size=65"),
    *("trainer.epochs=6", "trainer.log_every=2", "tracking=mlflow", "tracking.experiment=shapes"),
)


@dataclass(frozen=True)
class Job:
    """What the run folder says of a job."""

    name: str
    lr: str
    batch_size: int
    folder: Path

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
        """The IoU of each class, as its table has it."""
        with (self.folder / "tables" / "val_iou.csv").open() as file:
            return {row["class"]: float(row["iou"]) for row in csv.DictReader(file)}

    @property
    def validations(self) -> int:
        """How often it was validated."""
        return sum("val/mean_iou" in line for line in (self.folder / "metrics.jsonl").read_text().splitlines())

    @property
    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary


@dataclass(frozen=True)
class Study:
    """A sweep's records."""

    sweep_id: str
    store: str
    jobs: Sequence[Job]

    @property
    def experiment_id(self) -> str:
        return str(self._client.get_run(self.jobs[0].run_id).info.experiment_id)

    @property
    def overview_id(self) -> str:
        """The run that shows the sweep as a whole."""
        (run,) = self._client.search_runs([self.experiment_id], "tags.kind = 'sweep'")
        return str(run.info.run_id)

    @property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.store)

    @property
    def finished(self) -> list[Job]:
        """The best first."""
        return sorted((job for job in self.jobs if job.status == "FINISHED"), key=lambda job: -job.best)

    @property
    def failed(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "FAILED"]


def make_study(home: Path) -> Study:
    """Train the jobs in `home`, tracked in MLflow there."""
    store = f"sqlite:///{home / 'outputs' / 'mlflow.db'}"
    jobs = [
        Job(f"lr={lr},batch_size={batch_size}", lr, batch_size, home / "outputs" / "sweeps" / SWEEP_ID / str(number))
        for number, (lr, batch_size) in enumerate([*GRID, TOO_HIGH])
    ]
    with _typing_in(home) as type_in:
        for job in jobs:
            type_in(
                *TINY,
                *LEARNS,
                f"optimizer.lr={job.lr}",
                f"loader.batch_size={job.batch_size}",
                f"run_name='{job.name}'",
                f"hydra.run.dir={job.folder}",
            )
    _tag(store, jobs)
    study = Study(SWEEP_ID, store, jobs)
    _overview(home, study)
    return study


@contextmanager
def _typing_in(home: Path) -> Iterator[Any]:
    """A function that types a command line in this process, with `home` as the working folder."""
    from pspexp import main

    def type_in(*words: str) -> None:
        patch.setattr(sys, "argv", ["pspexp", *words])
        with suppress(SystemExit):  # the job that fails
            main.main()

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield type_in


def _tag(store: str, jobs: Sequence[Job]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    for job, colour in zip(jobs, COLOURS, strict=True):
        client.set_tag(job.run_id, "sweep", SWEEP_ID)
        client.set_tag(job.run_id, "mlflow.runColor", colour)


def _overview(home: Path, study: Study) -> None:
    """One more run with the ranking and two pictures."""
    from matplotlib.figure import Figure

    folder = home / "outputs" / "sweeps" / study.sweep_id
    rows = [
        f"{number},{job.lr},{job.batch_size},{job.best:.4f},{job.status}" for number, job in enumerate(study.finished)
    ]
    (folder / "sweep.csv").write_text("\n".join(["job,optimizer.lr,loader.batch_size,best/mean_iou,status", *rows]))
    (folder / "plots").mkdir()
    for name in ("parallel_coordinates", "heat_map"):
        figure = Figure(figsize=(7.5, 4.2), dpi=150)
        figure.subplots().scatter([job.batch_size for job in study.finished], [job.best for job in study.finished])
        figure.savefig(folder / "plots" / f"{name}.png")
    view = MLflowTracker("shapes", str(home / "outputs"), study.store)
    view.open(run_id=None, name=f"sweep {study.sweep_id}", params={}, tags={"kind": "sweep"})
    view.files(folder, ["sweep.csv", "plots/parallel_coordinates.png", "plots/heat_map.png"])
    ranking = [
        f"| {rank} | {job.name} | {100 * job.best:.2f} | {job.status} |" for rank, job in enumerate(study.finished, 1)
    ]
    failed = [f"| – | {job.name} | – | {job.status} |" for job in study.failed]
    view.note(
        "\n".join(
            [
                f"Show its jobs with the filter `tags.sweep = '{study.sweep_id}'`",
                "",
                "| | job | best mean IoU (percent) | status |",
                "| --: | :-- | --: | :-- |",
                *ranking,
                *failed,
            ]
        )
    )
    view.close("FINISHED")
