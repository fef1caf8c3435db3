"""Many runs at the same time, on the database that MLflow gets by default."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from pspexp.tracking import MLflowLogger
from pspexp.tracking.local import LocalTracker
from pspexp.tracking.tracker import Tracker

REPEATS, JOBS, AT_A_TIME = 20, 8, 4


def job(home: Path, number: int) -> str:
    """What a run of a sweep does to its records."""
    tracker = Tracker(LocalTracker(home / str(number)), {"mlflow": MLflowLogger("pspexp", str(home))})
    words = {"name": str(number), "config_text": "seed: 1\n", "overrides": [], "tags": {"sweep": home.name}}
    tracker.start(config={"seed": number}, **words)
    for step in range(1, 6):
        tracker.metrics({"train/loss": 1 / step}, step=step, epoch=1)
    tracker.finish("FINISHED", best={"best/mean_iou": number / JOBS})
    return tracker.ids.get("mlflow", "disabled")


@pytest.mark.slow
def test_parallel_jobs_never_fail_on_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks, and tables that several make at once: each repeat begins with no database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with ProcessPoolExecutor(AT_A_TIME, multiprocessing.get_context("spawn")) as pool:
        for repeat in range(REPEATS):
            home = tmp_path / f"repeat{repeat}"
            found = list(pool.map(job, [home] * JOBS, range(JOBS)))
            assert len(set(found)) == JOBS, found

            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
            (experiment,) = [one for one in client.search_experiments() if one.name == "pspexp"]
            runs = client.search_runs([experiment.experiment_id])
            assert sorted(run.info.run_id for run in runs) == sorted(found)
            assert {
                (run.info.status, len(client.get_metric_history(run.info.run_id, "train/loss"))) for run in runs
            } == {("FINISHED", 5)}
