"""``mode=clean``: old runs are listed, and removed with their runs in MLflow."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pspexp.tracking.runs import run_dir_lock
from tests.conftest import TINY, Cli

MONTH_S = 30 * 24 * 3600


@pytest.fixture
def runs(cli: Cli, tmp_path: Path) -> Path:
    """Three runs that are a month old: failed and in MLflow, finished, and killed without a word."""
    assert cli(*TINY[:-1], "trainer.max_steps=1", "hydra.run.dir=outputs/a/failed") == 0
    for name in ("finished", "killed"):
        assert cli(*TINY, "trainer.max_steps=1", f"hydra.run.dir=outputs/a/{name}") == 0
    for name, status in (("failed", "FAILED"), ("finished", "FINISHED"), ("killed", "RUNNING")):
        folder = tmp_path / "outputs" / "a" / name
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "status": status}))
        for file in folder.rglob("*"):
            then = file.stat().st_mtime - MONTH_S
            os.utime(file, (then, then))
    return tmp_path / "outputs" / "a"


def names(runs: Path) -> list[str]:
    return sorted(folder.name for folder in runs.iterdir())


def mlflow_run(runs: Path) -> Any:
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(tracking_uri=f"sqlite:///{runs.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("pspexp")
    (run,) = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    return run


def test_runs_are_listed_and_kept_without_an_answer(runs: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli("mode=clean") == 0
    captured = capsys.readouterr()
    assert "outputs/a/failed" in captured.out
    assert "2 runs" in captured.out
    assert "outputs/a/finished" not in captured.out
    assert captured.err == "nothing was removed; to remove without a question, add clean.ask=false\n"
    assert names(runs) == ["failed", "finished", "killed"]


@pytest.mark.parametrize(("answer", "left"), [("y", ["finished"]), ("", ["failed", "finished", "killed"])])
def test_runs_are_removed_with_their_artifacts_after_asking(
    runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, answer: str, left: list[str]
) -> None:
    artifacts = Path(mlflow_run(runs).info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "checkpoints" / "best.pt").is_file()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert cli("mode=clean") == 0
    assert names(runs) == left
    assert mlflow_run(runs).info.lifecycle_stage == ("deleted" if answer else "active")
    assert (artifacts / "checkpoints" / "best.pt").exists() == (not answer)


def test_rule_and_runs_in_use(runs: Path, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=clean", "clean.older_than_days=40", "clean.ask=false") == 0
    assert names(runs) == ["failed", "finished", "killed"]
    capsys.readouterr()
    (runs / "killed" / "checkpoints" / "last.pt").touch()  # it was resumed
    assert cli("mode=clean", "clean.status=[KILLED]", "clean.ask=false") == 0
    assert "no run matches clean.status=[KILLED], clean.older_than_days=7" in capsys.readouterr().err
    os.utime(runs / "killed" / "checkpoints" / "last.pt", (1e9, 1e9))
    with run_dir_lock(runs / "killed"):
        assert cli("mode=clean", "clean.status=[KILLED]", "clean.ask=false") == 0
    assert "no run matches clean.status=[KILLED], clean.older_than_days=7" in capsys.readouterr().err
    assert cli("mode=clean", "clean.runs=outputs/a/finished", "clean.status=[FINISHED]", "clean.ask=false") == 0
    assert names(runs) == ["failed", "killed"]
    assert cli("mode=clean", "clean.runs=[nowhere]") == 2
    assert "clean.runs=nowhere: no such folder" in capsys.readouterr().err
