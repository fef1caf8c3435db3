"""Comparing MLflow runs, which may have only params and metrics left."""

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.jobs.compare.test_compare import make_run

CLASSES = "['cat', 'a+b', 'gone']"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with an experiment ``pspexp``: three jobs and the overview of sweep ``s1``, and one other run."""
    from mlflow import MlflowClient

    home = tmp_path_factory.mktemp("store")
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    experiment = client.create_experiment("pspexp", artifact_location=(home / "artifacts").as_uri())
    client.create_experiment("idle", artifact_location=(home / "artifacts").as_uri())

    def add(name: str, lr: str, mean_iou: float | None, status: str = "FINISHED", **tags: str) -> None:
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for key, value in {"optimizer.lr": lr, "seed": "1", "run_name": "None", "dataset.class_names": CLASSES}.items():
            client.log_param(run, key, value)
        if mean_iou is not None:
            names = ("best/mean_iou", "val/mean_iou", "val/iou/cat", "val/iou/a_b")
            for metric in names:
                client.log_metric(run, metric, mean_iou)
        client.set_terminated(run, status)

    add("lr=0.1", "0.1", 0.25, sweep="s1")
    add("lr=0.2", "0.2", 0.5, sweep="s1")
    add("lr=0.3", "0.3", 0.9, "FAILED", sweep="s1")
    add("sweep s1", "0.1", 0.5, sweep="s1", kind="sweep")
    add("alone", "0.4", 0.75)
    return f"sqlite:///{home}/mlflow.db"


def compared(cli: Cli, uri: str, *overrides: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the rows of both tables."""
    return compared_runs(cli, uri, *overrides), read("classes.csv")


def compared_runs(cli: Cli, uri: str, *overrides: str) -> list[dict[str, str]]:
    """Return the rows of the table of runs."""
    assert cli("mode=compare", "hydra.run.dir=out", f"tracking.tracking_uri={uri}", *overrides) == 0
    return read("compare.csv")


def read(name: str) -> list[dict[str, str]]:
    with (Path("out") / name).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_sweep_is_compared_without_its_overview(uri: str, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    runs, classes = compared(cli, uri, "compare.sweep=s1")
    columns = ("run", "status", "optimizer.lr", "best/mean_iou")
    assert [tuple(row[name] for name in columns) for row in runs] == [
        ("lr=0.2", "FINISHED", "0.2", "0.5"),
        ("lr=0.1", "FINISHED", "0.1", "0.25"),
        ("lr=0.3", "FAILED", "0.3", ""),
    ]
    assert [list(row.values()) for row in classes] == [
        ["cat", "0.25", "0.5", "0.25"],
        ["a+b", "0.25", "0.5", "0.25"],
        ["gone", "", "", ""],
    ]
    assert "lr=0.2: no config.yaml, summary.json, tables in MLflow" in capsys.readouterr().out


def test_runs_chosen_by_experiment_and_filter(uri: str, cli: Cli) -> None:
    assert [row["run"] for row in compared(cli, uri)[0]] == ["alone", "lr=0.2", "lr=0.1", "lr=0.3"]
    overrides = "compare.filter='metrics.`best/mean_iou` >= 0.5'", "compare.experiment=pspexp"
    assert [row["run"] for row in compared(cli, uri, *overrides)[0]] == ["alone", "lr=0.2", "lr=0.3"]
    overrides = "compare.filter=\"params.`optimizer.lr` != '0.3'\"", "compare.sweep=s1"
    assert [row["run"] for row in compared(cli, uri, *overrides)[0]] == ["lr=0.2", "lr=0.1"]


def test_run_folders_and_mlflow_runs_together(uri: str, cli: Cli, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("pspexp").experiment_id
    ids = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment])}
    folder = make_run(tmp_path / "local", 0.5, {"cat": 0.5})
    summary = (folder / "summary.json").read_text()
    override = f"compare.runs=[runs:/{ids['alone']},local]"
    assert [row["run"] for row in compared(cli, uri, override)[0]] == ["alone", "local"]
    # A run given as a folder and by its MLflow ID is one run.
    (folder / "summary.json").write_text(summary.replace("{", f'{{"mlflow_run_id": "{ids["alone"]}",', 1))
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", override) == 2
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", f"compare.runs=[local,runs:/{ids['sweep s1']}]") == 2
    # It keeps its first position.
    make_run(tmp_path / "third", 0.5, {"cat": 0.5})
    _, classes = compared(cli, uri, f"compare.runs=[runs:/{ids['alone']},third,local]")
    assert list(classes[0]) == ["class", "local", "third", "third - local"]
    _, classes = compared(cli, uri, f"compare.runs=[third,runs:/{ids['alone']},local]")
    assert list(classes[0]) == ["class", "third", "local", "local - third"]
    _, classes = compared(cli, uri, "compare.runs=[third,local]", f"compare.baseline=runs:/{ids['alone']}")
    assert list(classes[0]) == ["class", "local", "third", "third - local"]


def test_deleted_runs_and_experiments_are_refused(
    uri: str, cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    gone = client.create_experiment("gone", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(gone).info.run_id
    client.delete_run(run)
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", f"compare.runs=[runs:/{run}]") == 2
    assert f"compare.runs=runs:/{run}: is deleted" in capsys.readouterr().err
    client.delete_experiment(gone)
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", "compare.experiment=gone") == 2
    assert "compare.experiment=gone: is deleted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["compare.experiment=pspex"],
            ["compare.experiment=pspex: no such experiment in MLflow", "did you mean 'pspexp'?"],
        ),
        (["compare.experiment=idle"], ["compare.experiment=idle: no match among 0 runs"]),
        (["compare.sweep=s2"], ["compare.sweep=s2: no match among 4 runs", "existing sweeps: s1"]),
        (
            ["compare.filter=\"params.`optimizer.lrr` = '1'\""],
            ["no match among 4 runs", "no run has params.optimizer.lrr; did you mean 'optimizer.lr'?"],
        ),
        (
            ["compare.filter='nothing.known = 1'"],
            ["compare.filter=nothing.known = 1: MLflow reports: ", "example: params"],
        ),
        (["compare.filter='what is this'"], ["compare.filter=what is this: MLflow reports: "]),
        (["compare.filter=\"params.`optimizer.lr` = '0.1'\""], ["needs at least two runs, found one (runs:/"]),
        (["compare.runs=[runs:/123]"], ["compare.runs=runs:/123", "Run with id=123 not found"]),
    ],
)
def test_unmatched_selection_is_reported_with_suggestions(
    overrides: list[str], messages: list[str], uri: str, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", *overrides) == 2
    stderr = capsys.readouterr().err
    assert [text for text in messages if text not in stderr] == []
    assert not list(Path("outputs/compare").iterdir())


def test_quoted_name_is_reported_unquoted(uri: str, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", 'compare.sweep="it\'s"') == 2
    assert "compare.sweep=it's: no match among 4 runs" in capsys.readouterr().err


def test_sweep_id_may_contain_a_quote(uri: str, cli: Cli) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("quotes", artifact_location=f"{uri.partition(':///')[2]}.artifacts")
    for name in ("one", "two"):
        client.set_terminated(client.create_run(experiment, run_name=name, tags={"sweep": "it's"}).info.run_id)
    runs = compared_runs(cli, uri, "compare.experiment=quotes", 'compare.sweep="it\'s"')
    assert [row["run"] for row in runs] == ["one", "two"]


def test_failed_test_run_is_compared_by_its_overrides(uri: str, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("tests", artifact_location=f"{uri.partition(':///')[2]}.tests")
    for name, dataset, tags in (
        ("good", "shapes", {"host": "here"}),
        ("began", "zoo", {"host": "here"}),
        ("bad", "voc", {}),
    ):
        run = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for key, value in {"mode": "test", "checkpoint.path": f"{name}.pt", "choices.dataset": dataset}.items():
            client.log_param(run, key, value)
        client.log_text(run, f"mode=test\ncheckpoint.path={name}.pt\n", "overrides.txt")
        if name == "good":
            client.log_metric(run, "test/mean_iou", 0.5)
        client.set_terminated(run, "FINISHED" if name == "good" else "FAILED")
    runs = compared_runs(cli, uri, "compare.experiment=tests")
    assert [(row["run"], row["checkpoint.path"], row["choices.dataset"]) for row in runs] == [
        ("good", "good.pt", "shapes"),
        ("began", "began.pt", "zoo"),
        ("bad", "bad.pt", ""),
    ]
    assert "different data sets" not in capsys.readouterr().out


@pytest.mark.parametrize("override", ["compare.experiment=0", "compare.sweep=0"])
def test_names_may_be_numbers(override: str, uri: str, cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("mode=compare", f"tracking.tracking_uri={uri}", override) == 2
    stderr = capsys.readouterr().err
    assert f"{override}: " in stderr
    assert "no such experiment in MLflow" in stderr or "no match among" in stderr


def test_unreachable_server_is_a_user_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    overrides: list[Any] = ["tracking.tracking_uri='http://someone:secret@127.0.0.1:9'"]
    assert cli("mode=compare", *overrides) == 2
    stderr = capsys.readouterr().err
    assert "127.0.0.1:9" in stderr
    assert "secret" not in stderr


@pytest.mark.parametrize("is_local", [True, False])
def test_files_are_read_where_they_are_or_downloaded(
    is_local: bool, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks a run up eight times to copy its files, which took most of the time of a comparison of many runs."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("pspexp", artifact_location=(tmp_path / "artifacts").as_uri())
    for mean_iou in (0.25, 0.5):
        run = client.create_run(experiment, run_name=f"run {mean_iou}").info
        make_run(tmp_path / "artifacts" / run.run_id / "artifacts", mean_iou, config={"optimizer.lr": mean_iou})
        client.set_terminated(run.run_id)
    if is_local:
        monkeypatch.setattr(mlflow.MlflowClient, "download_artifacts", lambda *_: pytest.fail("downloaded"))
    else:
        monkeypatch.setattr("pspexp.jobs.compare.from_mlflow.local_folder", lambda _: None)
    runs = compared_runs(cli, uri)
    assert [(row["run"], row["best/mean_iou"], row["optimizer.lr"]) for row in runs] == [
        ("run 0.5", "0.5", "0.5"),
        ("run 0.25", "0.25", "0.25"),
    ]
