"""Many concurrent runs on the default MLflow database."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pspexp.tracking import MLflowLogger
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.tracker import Tracker

REPEATS, JOBS, WORKERS = 8, 8, 4


def job(home: Path, number: int) -> str:
    """Record a run like a job of a sweep does."""
    tracker = Tracker(LocalTracker(home / str(number)), {"mlflow": MLflowLogger("pspexp", str(home))})
    arguments = {"name": str(number), "config_text": "seed: 1\n", "overrides": [], "tags": {"sweep": home.name}}
    tracker.start(config={"seed": number}, **arguments)
    for step in range(1, 6):
        tracker.metrics({"train/loss": 1 / step}, step=step, epoch=1)
    tracker.finish("FINISHED", best={"best/mean_iou": number / JOBS})
    return tracker.ids.get("mlflow", "disabled")


@pytest.mark.slow
def test_parallel_jobs_share_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database locks and concurrent table creation: each repeat starts without a database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        for repeat in range(REPEATS):
            home = tmp_path / f"repeat{repeat}"
            run_ids = list(pool.map(job, [home] * JOBS, range(JOBS)))
            assert len(set(run_ids)) == JOBS, run_ids

            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
            (experiment,) = [found for found in client.search_experiments() if found.name == "pspexp"]
            runs = client.search_runs([experiment.experiment_id])
            assert sorted(run.info.run_id for run in runs) == sorted(run_ids)
            assert {
                (run.info.status, len(client.get_metric_history(run.info.run_id, "train/loss"))) for run in runs
            } == {("FINISHED", 5)}
