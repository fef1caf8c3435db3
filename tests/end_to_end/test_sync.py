"""``mode=sync``: records that a tracking server has not received are sent later."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Cli, run_commands

AWAY = "http://me:pass@127.0.0.1:9"  # the discard port, where nothing listens
RUN = (*TINY[:-1], "tracking.experiment=trials", "tracking.wait_s=0")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose server was away, and one without MLflow."""
    home = tmp_path_factory.mktemp("recorded")
    run_commands(
        home,
        (*RUN, f"tracking.tracking_uri={AWAY}", "hydra.run.dir=outputs/a/one"),
        (*TINY, "trainer.max_steps=1", "hydra.run.dir=outputs/a/local"),
    )
    return home


@pytest.fixture
def home(recorded: Path, tmp_path: Path) -> Path:
    """A copy of `recorded`, the working folder."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    return tmp_path


def mlflow_runs(uri: str) -> list[Any]:
    """The runs of the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("trials")
    return client.search_runs([found.experiment_id]) if found else []


def steps(uri: str, run_id: str, name: str = "train/loss") -> list[tuple[int, float]]:
    """Steps and values of a metric."""
    from mlflow import MlflowClient

    return [(one.step, one.value) for one in MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)]


def test_outage_ends_with_exit_code_0_and_names_the_command(recorded: Path) -> None:
    log = (recorded / "outputs" / "a" / "one" / "run.log").read_text()
    assert log.count("is unavailable") == 1
    assert "pass@" not in log
    assert f"python -m pspexp mode=sync sync.runs={recorded}/outputs/a/one\n" in log
    summary = json.loads((recorded / "outputs" / "a" / "one" / "summary.json").read_text())
    assert (summary["status"], summary["mlflow_run_id"]) == ("FINISHED", None)


def test_sync_sends_everything_once(home: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{home}/new.db"
    command = ("mode=sync", "sync.runs=outputs/a/one", f"tracking.tracking_uri={uri}")
    assert cli(*command) == 0
    (run,) = mlflow_runs(uri)
    folder = home / "outputs" / "a" / "one"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["step"], record["train/loss"]) for record in records if "train/loss" in record]
    assert steps(uri, run.info.run_id) == losses
    assert run.info.status == "FINISHED"
    assert run.data.tags["mode"] == "train"
    assert run.data.params["trainer.epochs"] == "2"
    assert "mean IoU" in run.data.tags["mlflow.note.content"]
    assert json.loads((folder / "summary.json").read_text())["mlflow_run_id"] == run.info.run_id
    assert f"{len(records)} records and " in capsys.readouterr().err

    assert cli(*command) == 0
    assert capsys.readouterr().err == "1 run: all records have been received\n"
    assert steps(uri, run.info.run_id) == losses


def test_sync_of_a_folder_of_runs_names_what_is_still_away(
    home: Path, cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    assert cli("mode=sync") == 1
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "not everything could be sent" in text
    assert "outputs/a/one: tracking.tracking_uri=http://***@127.0.0.1:9: is a secret" in text
    assert "outputs/a/local" not in text
    assert "pass@" not in text


def test_sync_sends_a_named_run_without_mlflow(home: Path, cli: Cli) -> None:
    uri = f"sqlite:///{home}/new.db"
    command = ("sync.runs=[outputs/a/local]", "tracking.experiment=trials", f"tracking.tracking_uri={uri}")
    assert cli("mode=sync", *command) == 0
    (run,) = mlflow_runs(uri)
    assert (run.info.run_name, run.info.status) == ("shapes pspnet18 local", "FINISHED")


def test_sync_closes_a_killed_run(home: Path, cli: Cli) -> None:
    uri, folder = f"sqlite:///{home}/new.db", home / "outputs" / "a" / "one"
    manifest = json.loads((folder / "tracking" / "manifest.json").read_text())
    (folder / "tracking" / "manifest.json").write_text(json.dumps({**manifest, "status": None}))
    assert cli("mode=sync", "sync.runs=outputs/a", f"tracking.tracking_uri={uri}") == 0
    assert [run.info.status for run in mlflow_runs(uri)] == ["KILLED"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("mode=sync", "sync.runs=nowhere"), "sync.runs=nowhere: no such folder (looked for {home}/nowhere)"),
        (("mode=sync", "sync.runs=[outputs/a/one/plots]"), "sync.runs=outputs/a/one/plots: holds no run"),
        (("sync.runs=outputs",), "sync.runs=outputs: has no effect on mode=train; add mode=sync"),
    ],
)
def test_wrong_input(
    home: Path, cli: Cli, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    assert cli(*overrides) == 2
    captured = capsys.readouterr()
    assert message.format(home=home) in captured.out + captured.err


def test_sync_refuses_another_place_than_before(
    home: Path, cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = f"sqlite:///{home}/new.db", home / "outputs" / "a" / "one"
    assert cli("mode=sync", "sync.runs=outputs/a/one", f"tracking.tracking_uri={uri}") == 0
    manifest = json.loads((folder / "tracking" / "manifest.json").read_text())
    manifest["tracking"]["tracking_uri"] = None
    (folder / "tracking" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/other.db")
    assert cli("mode=sync", "sync.runs=outputs/a/one") == 1
    captured = capsys.readouterr()
    assert "was recorded by MLflow at sqlite:///" in captured.out + captured.err
    assert not (home / "other.db").exists()
