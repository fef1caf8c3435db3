"""Where MLflow's records are: any output_root, deleted experiments."""

import logging
from pathlib import Path

import pytest

from pspexp.tracking import MLflowLogger
from pspexp.tracking.manifest import Manifest
from pspexp.tracking.mlflow_client import download_file, reader, resolve_uri, sqlite_file
from pspexp.tracking.senders import Senders
from tests.end_to_end.conftest import wait_until

SIGNS = ["plain", "a?b", "a%20b", "50%", "a#b", "a b&c=d", "猫é", "q'x;y", "a+b", "%3F?", "file:x"]


@pytest.fixture(autouse=True)
def _no_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize("name", SIGNS)
def test_database_is_in_the_output_root(tmp_path: Path, name: str) -> None:
    import sqlite3

    from sqlalchemy import create_engine, text

    root = (tmp_path / name).resolve()
    root.mkdir()
    uri = resolve_uri(None, str(root))
    assert sqlite_file(uri) == root / "mlflow.db"
    with create_engine(uri).connect() as connection:
        connection.execute(text("create table found (x integer)"))
        connection.commit()
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["mlflow.db"]
    with sqlite3.connect(root / "mlflow.db") as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == [("found",)]


def test_records_and_artifacts_are_in_the_output_root(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, run = tmp_path / "a?b %20 #é&c", tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.pt").write_text("weights")
    logger = MLflowLogger("trials", str(root))
    run_id = logger.open(run_id=None, name="name", params={"seed": "1"}, tags={})
    logger.files(run, ["checkpoints/best.pt"])
    logger.close("FINISHED")
    assert caplog.text == ""
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([root.name, "run"])
    assert (root / "mlflow.db").is_file()
    found = download_file(run_id, "checkpoints/best.pt", None, str(root))
    assert found.is_relative_to(root / "mlartifacts")
    assert found.read_text() == "weights"

    uri = resolve_uri(None, str(root))
    with reader(uri, "test") as client:
        experiment = client.get_experiment_by_name("trials")
        assert [one.info.run_name for one in client.search_runs([experiment.experiment_id])] == ["name"]
        client.delete_experiment(experiment.experiment_id)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([root.name, "run"])
    senders = Senders({"mlflow": MLflowLogger("trials", str(root))}, run)
    with caplog.at_level(logging.WARNING):
        senders.start(Manifest("other", {}, {}))
        wait_until(lambda: bool(caplog.records))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"logger mlflow (MLflow at {uri}) is unavailable; records remain in {run} and are sent when it is back: "
        f"tracking.experiment=trials: was deleted in MLflow; restore it with mlflow experiments restore -x "
        f"{experiment.experiment_id} (MLFLOW_TRACKING_URI={uri}), or choose another tracking.experiment"
    )
    client.restore_experiment(experiment.experiment_id)
    assert senders.finish(Manifest("other", {}, {}, status="FINISHED"), 30.0) == []
    names = {one.info.run_name: one.info.status for one in client.search_runs([experiment.experiment_id])}
    assert names == {"name": "FINISHED", "other": "FINISHED"}
